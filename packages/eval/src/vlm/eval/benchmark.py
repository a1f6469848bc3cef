"""A benchmark as data: one YAML table each, where its files lie, what is asked, how it is scored, what was published.

table = load_benchmark("POPE").for_family("internvl2")
items = load_items(table, home() / "dataset" / table.folder)      # vlm.eval.loaders
"""

from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vlm.core.config import Strict, load_yaml, package_tables, parse
from vlm.core.errors import UnknownName


class Generation(Strict):
    """Greedy decoding limits in new tokens; `by_group` replaces `max_new_tokens` for single groups."""

    max_new_tokens: int = Field(ge=1)
    min_new_tokens: int = Field(1, ge=0)
    by_group: dict[str, int] = Field(default_factory=dict)
    source: str


class Images(Strict):
    """Keys of the family's image rule that this benchmark replaces; None leaves the family's own."""

    max_tiles: int | None = Field(None, ge=1)
    thumbnail: bool | None = None
    source: str


class Family(Strict):
    """What differs for one model family: prompt pieces, image rule, decoding, scorer, options of the loader."""

    prompt: dict[str, str] = Field(default_factory=dict)
    images: Images | None = None
    generation: Generation | None = None
    scorer: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class Counts(Strict):
    """Items per group of the complete download. `at_least`: only a lower bound is known. Groups named as the variants
    are one for each variant."""

    groups: dict[str, int]
    at_least: bool = False
    source: str


class Published(Strict):
    """One published number (0 to 100; MME: points). `metric` is the name of the metric of ours that it belongs beside.

    `variant`: the one that it belongs to, when there are several.
    """

    system: str
    metric: str
    variant: str | None = None
    value: float
    source: str


class Submission(Strict):
    """The file that an evaluation server takes. `format` is a key of `vlm.eval.run.submission.FORMATS`."""

    file: str
    format: str
    server: str
    source: str


class JudgeRule(Strict):
    """What a language model is asked about a reply (vlm.eval.backends.judge).

    `kind`: `grade` it from 0.0 to 1.0, `extract` the answer from it, `choose` the option that it means. `fallback`: the
    deterministic rule that reads replies when there is no judge; None leaves them not judged.
    """

    kind: Literal["grade", "extract", "choose"]
    instruction: str
    fallback: str | None = None
    source: str


class Benchmark(Strict):
    """The table of one benchmark. Source: ours; the facts inside carry their own.

    `folder`: below `dataset/`, with `{variant}` when there are several. `prompt`: named pieces, exact, that the loader
    joins. `scorer`: one name for all items, or one per group. `counts`: None for sets that only ever carry a marker.
    `aggregate: not_scored`: the answers are with a server, which scores the `submission`. `teacher_forced`: the answer
    is given, and what the model would have said at each of its tokens is the reply (vlm.eval.backends.teacher_forcing).
    """

    name: str
    title: str
    loader: str
    folder: str
    variants: list[str] = Field(default_factory=list)
    prompt: dict[str, str] = Field(default_factory=dict)
    prompt_source: str
    generation: Generation
    families: dict[str, Family] = Field(default_factory=dict)
    scorer: str | dict[str, str]
    aggregate: str
    counts: Counts | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    submission: Submission | None = None
    judge: JudgeRule | None = None
    teacher_forced: bool = False
    published: list[Published] = Field(default_factory=list)
    kind: Literal["published", "ours"] = "published"
    notes: list[str] = Field(default_factory=list)

    @property
    def max_new_tokens(self) -> int:
        """Token budget of an answer, unless the item's `meta` names its own."""
        return self.generation.max_new_tokens

    @property
    def server_scored(self) -> bool:
        """Whether the answers are kept by a server: items have no gold, and there is no score of ours."""
        return self.aggregate == "not_scored"

    def scorer_of(self, group: str) -> str:
        """Name of the scorer of a group of items."""
        return self.scorer if isinstance(self.scorer, str) else self.scorer[group]

    def for_family(self, family: str) -> "Benchmark":
        """The table as that model family is asked; unchanged for a family the table does not name."""
        own = self.families.get(family, Family())
        generation = own.generation or self.generation
        merged = {"prompt": {**self.prompt, **own.prompt}, "options": {**self.options, **own.options}}
        return self.model_copy(update={**merged, "generation": generation, "scorer": own.scorer or self.scorer})

    def image_override(self, family: str) -> dict[str, Any]:
        """Keys to replace in the family's image rule: `rule.model_copy(update=table.image_override(family))`."""
        images = self.families.get(family, Family()).images
        return images.model_dump(exclude_none=True, exclude={"source"}) if images else {}


def tables(home: Path | None = None) -> dict[str, tuple[Path, str | None]]:
    """Name -> (YAML file, variant) of every benchmark: those shipped, and the user's own in `<home>/benchmarks/`."""
    paths = package_tables("vlm.eval", "benchmarks")
    if home is not None:
        paths |= {p.stem: p for p in sorted((home / "benchmarks").glob("*.yaml"))}
    found: dict[str, tuple[Path, str | None]] = {}
    for stem, path in paths.items():
        variants = _variants(path, path.stat().st_mtime_ns)
        found |= {f"{stem}-{variant}" if variant else stem: (path, variant) for variant in variants}
    return found


@cache
def _variants(path: Path, modified: int) -> list[str | None]:
    """Of a table as it was `modified` last: each look-up of a name needs those of every table."""
    return (load_yaml(path) or {}).get("variants") or [None]


def load_benchmark(name: str, home: Path | None = None) -> Benchmark:
    """The table of that name, in any case (`pope`, `POPE`, `digit-haystack-4x`).

    Raises:
        UnknownName: with the nearest names. ConfigError: every fault of the table at once.
    """
    known = tables(home)
    by_lower = {key.lower(): key for key in known}
    if name.lower() not in by_lower:
        raise UnknownName("benchmark", name, known, fix="`vlm list benchmarks` shows them all")
    path, variant = known[by_lower[name.lower()]]
    table = parse(load_yaml(path), Benchmark, where=str(path))
    if variant:
        names = {key: getattr(table, key).format(variant=variant) for key in ("name", "title", "folder")}
        table = table.model_copy(update={**names, **_of_variant(table, variant)})
    return table


def _of_variant(table: Benchmark, variant: str) -> dict[str, Any]:
    """The published numbers of one variant, and its count where the groups are the variants."""
    published = [number for number in table.published if number.variant in (None, variant)]
    counts = table.counts
    if counts and counts.groups.keys() == set(table.variants):
        counts = counts.model_copy(update={"groups": {variant: counts.groups[variant]}})
    return {"published": published, "counts": counts}
