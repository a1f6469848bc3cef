"""kill -9 at random moments of a real `vlm eval`, resumed by other numbers of processes: the bytes stay the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOKENIZER = HERE.parent / "golden" / "data" / "tokenizers" / "internlm2"
RESULTS = ("results.jsonl", "summary.json")


class Nursery:
    """Starts `vlm` commands in forked processes below one home, and kills or awaits them."""

    def __init__(self, home: Path):
        self.home, self.logs = home, 0
        self.pace = 1.0  # seconds that one evaluation takes, about
        self.log_of: dict[int, Path] = {}
        variables = {"VLM_HOME": str(home), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE.parent / "support/fork_eval.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
            cwd=home,
        )

    def close(self) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def _answer(self):
        line = self.process.stdout.readline()
        assert line, f"the nursery ended with {self.process.wait()}"
        return json.loads(line)

    def ready(self) -> None:
        assert self._answer() == "ready"

    def _ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def start(self, out: str, shard: str = "0/1") -> int:
        words = f"eval ai2d --model tiny --name m --mini --batch-size 1 --device cpu --out {out} --shard {shard}"
        self.logs += 1
        log = self.home / f"{self.logs}.log"
        pid = self._ask(arguments=words.split(), log=str(log))
        self.log_of[pid] = log
        return pid

    def kill(self, pid: int) -> bool:
        """kill -9; whether it was still at work."""
        os.kill(pid, signal.SIGKILL)
        hit = os.WIFSIGNALED(self._ask(wait=pid))
        self.pace *= 1.1 if hit else 0.7  # the machine may be slower or faster than a moment ago
        return hit

    def finish(self, pid: int) -> None:
        status = self._ask(wait=pid)
        assert status == 0, (status, self.log_of[pid].read_text()[-3000:])

    def results(self, out: str) -> Path:
        (folder,) = (self.home / out / "m" / "AI2D").iterdir()
        return folder


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    from vlm.eval.mini import make_mini
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.specs import load_preset

    home = tmp_path_factory.mktemp("home")
    model = build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0)
    save_model(model, home / "pretrained" / "tiny", tokenizer=TOKENIZER)
    make_mini("AI2D", home / "dataset" / "mini" / "AI2D")
    nursery = Nursery(home)
    try:
        nursery.ready()
        yield nursery
    finally:
        nursery.close()


@pytest.fixture(scope="module")
def clean(nursery):
    """The bytes of an undisturbed run."""
    seconds = []
    for out in ("warm", "clean"):
        began = time.monotonic()
        nursery.finish(nursery.start(out))
        seconds.append(time.monotonic() - began)
    folder = nursery.results("clean")
    nursery.pace = min(seconds)
    return {name: (folder / name).read_bytes() for name in RESULTS}


def attempt(nursery: Nursery, clean, seed: int) -> int:
    """One process killed, then three, then two that end it; returns how many kills found a process at work."""
    rng, out = random.Random(seed), f"killed-{seed}"
    pid = nursery.start(out)
    time.sleep(rng.uniform(0, nursery.pace))
    hits = int(nursery.kill(pid))
    pids = [nursery.start(out, f"{i}/3") for i in range(3)]
    for pid in pids:
        time.sleep(rng.uniform(0, nursery.pace / 3))
        hits += nursery.kill(pid)
    pids = [nursery.start(out, f"{i}/2") for i in range(2)]
    for pid in pids:
        nursery.finish(pid)
    folder = nursery.results(out)
    assert {name: (folder / name).read_bytes() for name in RESULTS} == clean
    return hits


def check_nothing_is_left(nursery: Nursery, out: str, clean) -> None:
    nursery.finish(nursery.start(out))
    folder = nursery.results(out)
    last = json.loads((folder / "timing.json").read_text())["runs"][-1]
    assert last["computed"] == 0 and last["reused"] == clean["results.jsonl"].count(b"\n") > 0
    assert {name: (folder / name).read_bytes() for name in RESULTS} == clean


@pytest.mark.timeout(900)  # a busy machine must not decide
def test_killed_runs_end_with_the_same_bytes_and_a_second_run_computes_nothing(nursery, clean):
    hits = sum(attempt(nursery, clean, seed) for seed in range(2))  # eight kills
    assert hits >= 2, "the kills came too late to prove anything"
    check_nothing_is_left(nursery, "killed-0", clean)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_killed_runs_end_with_the_same_bytes(nursery, clean):
    hits = sum(attempt(nursery, clean, seed) for seed in range(100, 150))  # two hundred kills
    assert hits >= 50, "the kills came too late to prove anything"
    check_nothing_is_left(nursery, "killed-100", clean)
