"""A fake model and benchmark for the runner's tests; as a script, one evaluation in a process that tests can kill.

python tests/support/fake_backend.py FOLDER OUT BATCH_SIZE SHARD/SHARDS SECONDS_PER_BATCH
"""

import hashlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from vlm.core.sample.records import image, text
from vlm.eval.backends.base import TooLong
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders import Item
from vlm.eval.run import results, runner
from vlm.eval.run.score import Metric, Score

N = 40
LABELS = ("yes", "no")


def benchmark() -> Benchmark:
    return Benchmark.model_validate(
        {
            "name": "fake",
            "title": "Fake",
            "loader": "fake",
            "folder": "fake",
            "prompt_source": "test",
            "generation": {"max_new_tokens": 4, "by_group": {"long": 9}, "source": "test"},
            "scorer": "fake",
            "aggregate": "fake",
            "published": [{"system": "S", "metric": "accuracy", "value": 50.0, "source": "a paper"}],
        }
    )


def make_items(folder: Path) -> list[Item]:
    """N questions over N / 2 images: two on each."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for i in range(N):
        path = folder / f"{i // 2}.png"
        if not path.exists():
            Image.new("RGB", (8, 8), (i * 5, 0, 0)).save(path)
        words = "word " * (1 + i * i % 97)
        message = {"role": "user", "content": [image(path), text(f"{words} question {i}?")]}
        items.append(Item(f"id{i}", [message], LABELS[i % 2], "long" if i % 7 == 0 else "short"))
    return items


@dataclass
class Reply:
    text: str
    finished: bool


@dataclass
class FakeBackend:
    """Answers are a function of the prompt alone; faults come at chosen ids."""

    family: str = "fake"
    fingerprint: str = "weights-1"
    settings: dict = field(default_factory=lambda: {"stride": None})
    seconds: float = 0.0
    oom_alone: frozenset = frozenset()
    oom_above: int = 10**9
    broken: frozenset = frozenset()
    unreadable: frozenset = frozenset()
    too_long: frozenset = frozenset()
    interrupt_after: int = 10**9
    asked: list = field(default_factory=list)
    recovered: int = 0

    def count_tokens(self, value: str) -> int:
        return len(value.split())

    def prompt(self, messages: list) -> str:
        return "".join(p.get("text", "<image>") for m in messages for p in m["content"])

    def cost(self, messages: list) -> float:
        return float(len(self.prompt(messages)))

    def encode(self, item_id: str, messages: list):
        if item_id in self.too_long:
            raise TooLong("9,999 tokens")
        if item_id in self.unreadable:
            raise ValueError(f"{item_id} cannot be read")
        return item_id, self.prompt(messages)

    def answer(self, encoded, *, max_new_tokens: int, min_new_tokens: int) -> list[Reply]:
        ids = [item_id for item_id, _ in encoded]
        time.sleep(self.seconds)
        if len(self.asked) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.asked.append(ids)
        if len(ids) > self.oom_above or self.oom_alone & set(ids):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.broken & set(ids):
            raise ValueError(f"bad input {sorted(self.broken & set(ids))[0]}")
        replies = []
        for _, prompt in encoded:
            number = hashlib.sha256(prompt.encode()).digest()[0]
            replies.append(Reply(LABELS[number % 2], finished=number % 5 > 0))
        return replies

    def recover(self) -> None:
        self.recovered += 1


def score_item(benchmark: Benchmark, item: Item, completion: str | None, compat: str, verdict: object = None) -> Score:
    if completion is None:
        return Score("", None, "no answer")
    right = completion == item.gold or (compat == "upstream" and item.id == "id1")
    return Score(extracted=completion, value=float(right), why=f"{completion} against {item.gold}")


def aggregate(benchmark: Benchmark, rows: list, compat: str) -> list[Metric]:
    key = "score" if compat == "upstream" else "strict_score"
    scored = [r[key] for r in rows if r[key] is not None]
    value = 100 * sum(scored) / len(scored) if scored else None
    return [Metric(name="accuracy", value=value, n_scored=len(scored), n_total=len(rows), low=value, high=value)]


def install(set_attribute=setattr) -> None:
    """Let the runner use the fake loader and scorer. Tests pass `monkeypatch.setattr`."""
    set_attribute(runner, "load_items", lambda benchmark, folder, **_: make_items(folder))
    set_attribute(results, "score_item", score_item)
    set_attribute(results, "aggregate", aggregate)


if __name__ == "__main__":
    install()
    data, out, batch_size, shard, seconds = sys.argv[1:]
    number, of = shard.split("/")
    options = runner.Options(batch_size=int(batch_size), shard=(int(number), int(of)))
    print("started", flush=True)
    runner.run_evaluation(benchmark(), FakeBackend(seconds=float(seconds)), Path(out), options, data=Path(data))
