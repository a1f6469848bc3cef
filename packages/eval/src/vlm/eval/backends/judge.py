"""A language model that grades or reads replies: any OpenAI-compatible endpoint, cached on disk by content.

    judge = Judge("http://localhost:8000/v1", "gpt-4", cache=Path("runs/eval/.judge"), key=os.environ["VLM_JUDGE_KEY"])
    verdict = judge_reply(table, item, completion, judge)      # Verdict("judged", "0.8", "")

Without a judge a reply is read by the table's fallback rule, which the result names, or it is not judged and has no
score. A failure of the judge does not count against the model: such items are typed (`KINDS`), counted, and left out of
the mean.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

from vlm.core.errors import ConfigError
from vlm.core.home import write_json
from vlm.eval.backends.endpoint import Endpoint, Nonsense, Unanswered, content_of
from vlm.eval.benchmark import Benchmark, JudgeRule
from vlm.eval.keys import content_key
from vlm.eval.loaders.common import Item
from vlm.eval.scorers.judged import is_number, judge_counts, judge_extraction, judge_letter, read_grade
from vlm.eval.scorers.mmbench import vlmevalkit_can_infer

Kind = Literal["judged", "rule", "not judged", "down", "nonsense"]

KINDS: dict[Kind, str] = {
    "judged": "by the judge",
    "rule": "by a deterministic rule, without the judge",
    "not judged": "no judge was given; not scored",
    "down": "the judge did not answer; not scored",
    "nonsense": "the judge's answer cannot be read; not scored",
}
ENDED: tuple[Kind, ...] = ("not judged", "down", "nonsense")
"""Kinds of verdicts that leave a reply without a score."""

PATIENCE = 3
"""Items in a row without an answer of the judge, after which the others are not sent."""

ASKED = 2
"""Times that a judge is asked for an answer that can be read; after that the reply is not judged."""

SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 64}
"""Decoding settings of a request to a judge; a table may allow more tokens."""

Read = Callable[[str], str | None]
"""Reads a judge's answer: its meaning, or None when it has none."""


@dataclass(frozen=True)
class Verdict:
    """What a judge, or the rule in place of one, made of a reply.

    `text`: the grade, the extracted answer or the letter; `detail` says what went wrong.
    """

    kind: Kind
    text: str = ""
    detail: str = ""

    @property
    def why(self) -> str:
        """The kind and its reason, in words."""
        return f"{self.kind}: {self.detail or KINDS[self.kind]}"


class Judge:
    """A judge behind an OpenAI-compatible endpoint.

    An answer is kept as the judge gave it: when the rules that read it change, it is read again, and asked for again
    only where it has no meaning any more.

    Args:
        url: Address up to `/v1`.
        model: The model's name there.
        cache: Folder of answers, one file for each model, settings and prompt; nonsense and failures are not kept.
        key: As in `Endpoint`.
        attempts: As in `Endpoint`.
        wait: As in `Endpoint`.
        timeout: As in `Endpoint`.
        workers: Replies judged at once.

    >>> judge = Judge("http://localhost:8000/v1", "gpt-4", cache=Path("runs/eval/.judge"))
    >>> judge.ask("Grade this reply: …", lambda reply: reply.strip())  # doctest: +SKIP
    Verdict(kind='judged', text='0.8', detail='')
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        cache: Path,
        key: str | None = None,
        attempts: int = 4,
        wait: float = 1.0,
        timeout: float = 60.0,
        workers: int = 4,
    ):
        self.endpoint = Endpoint(url, key=key, attempts=attempts, wait=wait, timeout=timeout, purpose="judge")
        self.model, self.cache, self.workers = model, Path(cache), workers
        self._down, self._lock = 0, threading.Lock()

    def ask(self, prompt: str, read: Read, *, max_tokens: int = SETTINGS["max_tokens"]) -> Verdict:
        """Return the judge's answer to `prompt` as `read` understands it, from the cache where it is known."""
        settings = SETTINGS | {"max_tokens": max_tokens}
        path = self.cache / f"{content_key(model=self.model, prompt=prompt, **settings)}.json"
        if (known := _cached(path, read)) is not None:
            return Verdict("judged", known)
        if self._down >= PATIENCE:
            return Verdict("down", detail=f"not sent: the judge did not answer {PATIENCE} items in a row")
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **settings}
        verdict = Verdict("nonsense")
        try:
            for _ in range(ASKED):
                reply = self.endpoint.chat(body, content_of)
                if (meaning := read(reply)) is not None:
                    verdict = Verdict("judged", meaning)
                    write_json(path, {"model": self.model, "prompt": prompt, "reply": reply})
                    break
                verdict = Verdict("nonsense", detail=f"the judge said {reply[:100]!r}")
        except Nonsense as error:
            verdict = Verdict("nonsense", detail=error.found)
        except Unanswered as error:
            verdict = Verdict("down", detail=error.found)
        with self._lock:
            self._down = self._down + 1 if verdict.kind == "down" else 0
        return verdict


def _cached(path: Path, read: Read) -> str | None:
    try:
        return read(json.loads(path.read_text(encoding="utf-8"))["reply"])
    except (OSError, ValueError, LookupError, TypeError):  # missing or damaged: the judge is asked again
        return None


def judge_reply(benchmark: Benchmark, item: Item, completion: str, judge: Judge | None) -> Verdict:
    """Return the verdict on one reply.

    As published, a reply that needs no judge (a bare number, an option that is named) is read by rule.

    Raises:
        ConfigError: The table has no judge.
    """
    rule = benchmark.judge
    if rule is None:
        raise ConfigError(f"{benchmark.name} has no judge", expected="a table with `judge`")
    if rule.kind == "claims":
        return _judge_claims(rule, item, completion, judge) if judge else Verdict("not judged")
    request = REQUESTS[rule.kind](item, completion)
    if request is None:
        return Verdict("rule", detail="needs no judge")
    if judge is None:
        return Verdict("rule", detail=f"{rule.fallback} (no judge)") if rule.fallback else Verdict("not judged")
    prompt, read = request
    return judge.ask(f"{rule.instruction}\n{prompt}", read, max_tokens=rule.max_tokens)


def _judge_claims(rule: JudgeRule, item: Item, completion: str, judge: Judge) -> Verdict:
    """Return what the judge says of a summary: how it is written, its key points, its sentences.

    As published, three questions; a summary is not judged when one of them has no answer.
    """
    said = []
    for part, material, read in _claims(item, completion.strip()):
        verdict = judge.ask(f"{rule.parts[part]}\n\n{material}", read, max_tokens=rule.max_tokens)
        if verdict.kind != "judged":
            return replace(verdict, detail=f"{part}: {verdict.detail}")
        said.append(f"{part} {verdict.text}")
    return Verdict("judged", ", ".join(said))


def judge_all(
    benchmark: Benchmark, answers: Sequence[tuple[Item, str | None]], judge: Judge | None
) -> list[Verdict | None]:
    """Return one verdict for each reply, in order; None where there is nothing to judge."""

    def one(answer: tuple[Item, str | None]) -> Verdict | None:
        item, completion = answer
        judged = benchmark.judge and completion is not None and item.gold is not None
        return judge_reply(benchmark, item, completion or "", judge) if judged else None

    if judge is None:
        return list(map(one, answers))
    with ThreadPoolExecutor(judge.workers) as pool:
        return list(pool.map(one, answers))


class JudgeSummary(TypedDict):
    """The `judge` of a summary.json: the judge's model, verdicts of each kind, a note for the headline metric."""

    model: str | None
    verdicts: dict[str, int]
    note: str


def judge_summary(benchmark: Benchmark, verdicts: Iterable[Verdict | None], judge: Judge | None) -> JudgeSummary:
    """Count the verdicts of each kind, for summary.json."""
    counts: Counter[Kind] = Counter()
    example = ""
    for verdict in verdicts:
        if verdict is not None:
            counts[verdict.kind] += 1
            example = example or (verdict.why if verdict.kind in ENDED else "")
    if counts["not judged"]:
        note = "not judged: give a judge by --judge-url and --judge-model"
    elif judge is None:
        note = f"read without a judge, by {benchmark.judge.fallback}" if benchmark.judge else ""
    else:
        lost = sum(counts[kind] for kind in ENDED)
        note = f"{lost} of {counts.total()} replies not scored, for example {example}" if lost else ""
    return {"model": judge.model if judge else None, "verdicts": dict(sorted(counts.items())), "note": note}


# the request, for each kind of judge --------------------------------------------------------------------------------


def _grade(item: Item, completion: str) -> tuple[str, Read] | None:
    cells = [" ".join(text.split()) for text in (item.meta["question"], item.gold, completion)]
    return " | ".join(cells) + " | ", read_grade


def _extract(item: Item, completion: str) -> tuple[str, Read] | None:
    choose = item.meta["question_type"] == "multi_choice"
    choices = (item.meta["choices"] or []) if choose else []
    number = not choose and item.meta["answer_type"] in ("integer", "float")
    if completion == "" or completion in choices or (number and is_number(completion)):
        return None
    read = partial(judge_extraction, choices=choices, number=number)
    return f"\n{question_of(item)}\n\nResponse: {completion}\n\nExtracted answer: ", read


def _choose(item: Item, completion: str) -> tuple[str, Read] | None:
    options = item.meta["options"]
    if vlmevalkit_can_infer(completion, options):
        return None
    read = partial(judge_letter, letters={*options, "Z"})
    return f"\n{question_of(item)}\n\nAnswer: {completion}\n\nLetter (Z for none): ", read


def question_of(item: Item) -> str:
    """Return the text of the question, without images."""
    parts = [part for message in item.messages for part in message["content"] if message["role"] == "user"]
    return "".join(part["text"] for part in parts if part["type"] == "text").strip()


def _claims(item: Item, summary: str) -> list[tuple[Literal["fluency", "recall", "precision"], str, Read]]:
    """Return the three questions about a summary: their part, what is compared, and how the answer is read."""
    points = [f"{number}. {claim}" for number, claim in enumerate(item.meta["claims"], 1)]
    marked = f"Summary:\n<summary>\n{summary}\n</summary>"
    listed = "\n".join(points)
    return [
        ("fluency", marked, partial(judge_counts, found="fluency", most=1)),
        ("recall", f"Key points:\n{listed}\n\n{marked}", partial(judge_counts, found="recall", total=len(points))),
        (
            "precision",
            f"Expert's summary:\n<summary>\n{item.gold}\n</summary>\n\n{marked}",
            partial(judge_counts, found="precision", total="sentence_count"),
        ),
    ]


REQUESTS: dict[str, Callable[[Item, str], tuple[str, Read] | None]] = {
    "grade": _grade,
    "extract": _extract,
    "choose": _choose,
}
"""Kind of a table's `judge` -> function(item, reply) -> (prompt after the instruction, reader).

None when the reply needs no judge.
"""
