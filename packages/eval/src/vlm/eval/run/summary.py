"""Types of the files that an evaluation writes beside results.jsonl: summary.json, run.json and timing.json.

summary: Summary = json.loads((folder / "summary.json").read_text())
headline = summary["metrics"][0]                     # {"name": "accuracy", "value": 81.3, "low": 79.0, ...}
"""

from typing import Any, NotRequired, Protocol, TypedDict

from vlm.eval.backends.judge import JudgeSummary


class AnswerSource(Protocol):
    """What answered the items: a backend, or saved predictions."""

    @property
    def fingerprint(self) -> str:
        """Digest of the weights, or of the files."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything else that determined the answers."""


class MetricRow(TypedDict):
    """A metric with its 95 % interval, from 0 to 100 (MME: points).

    `scored` of `total` items count in it. `note` explains a `value` of None, and what limits the number.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    scored: int
    total: int
    note: str


class Variant(TypedDict, total=False):
    """The settings that distinguish results of one model on one benchmark; those of `Options`."""

    stride: float | None
    positions: str
    tiles: int | None
    image_rule: str
    max_new_tokens: int
    shuffle_images: bool
    edition: str


class DataFacts(TypedDict, total=False):
    """The items that were evaluated, of how many, up to which limit, and whether they are a miniature."""

    items: int
    available: int
    limit: int | None
    mini: bool


class DecodeFacts(TypedDict):
    """What produced the answers and scores: digests of weights and scorers, and the settings of the backend."""

    weights: str
    scorers: str
    decode: dict[str, Any]


class PublishedValue(TypedDict):
    """A published number of the benchmark's table."""

    system: str
    metric: str
    variant: str | None
    value: float
    source: str


class ImportedFile(TypedDict):
    """A file of saved predictions and its digest."""

    file: str
    sha256: str


class Problem(TypedDict):
    """How many predictions have a problem of one kind, and some of them."""

    n: int
    examples: list[str]


class ImportFacts(TypedDict):
    """Which saved predictions were scored, in which format, matched by which id, and their problems by kind."""

    files: list[ImportedFile]
    format: str
    joined: str
    predictions: int
    problems: dict[str, Problem]


class SummaryHead(TypedDict):
    """The part of a summary that is known before anything is scored."""

    model: str
    variant: Variant
    data: DataFacts
    imported: NotRequired[ImportFacts]


class Summary(SummaryHead):
    """A summary.json. `metrics` are by the published rule, `strict_metrics` by the corrected one, the headline first.

    `outcomes` counts items by kind, `unreadable_answers` those in which the strict rule reads nothing,
    `beyond_positions` those whose prompt reaches positions that the model was not trained for; `judge` is there for
    tables with a judge.

    >>> summary = run_evaluation(table, backend, out, Options(), data=folder)  # doctest: +SKIP
    >>> summary["metrics"][0]["value"], summary["outcomes"]  # doctest: +SKIP
    (81.3, {'ok': 9000})
    """

    benchmark: str
    title: str
    metrics: list[MetricRow]
    strict_metrics: list[MetricRow]
    published: list[PublishedValue]
    outcomes: dict[str, int]
    empty_answers: int
    beyond_positions: NotRequired[int]
    unreadable_answers: NotRequired[int]
    provenance: DecodeFacts
    judge: NotRequired[JudgeSummary]


class Provenance(TypedDict, total=False):
    """A run.json: command, options, data, software and machine of the last command that wrote to the folder."""

    command: str
    options: dict[str, Any]
    data: str
    weights: str
    git_commit: str | None
    python: str
    platform: str
    versions: dict[str, str | None]


class TimedRun(TypedDict):
    """One command that worked on an evaluation: when it ended, seconds, items asked and items already known."""

    ended: str
    seconds: float
    computed: int
    reused: int


class Timing(TypedDict, total=False):
    """A timing.json: all commands that worked on an evaluation."""

    runs: list[TimedRun]
