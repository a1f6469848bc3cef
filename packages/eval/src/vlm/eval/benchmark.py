"""Benchmarks as data, one YAML table each: where the files are, what is asked, how it is scored, what was published.

table = load_benchmark("POPE").for_family("internvl2")
items = load_items(table, home() / "dataset" / table.folder)      # vlm.eval.loaders
"""

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vlm.core.config import Strict, load_yaml, package_tables, parse
from vlm.core.errors import ConfigError, UnknownName
from vlm.core.paths import FileName, InsidePath
from vlm.core.text import printable
from vlm.eval.printed import PublishedScore, scores_of


class GenerationRule(Strict):
    """Limits of greedy decoding in new tokens; `by_group` replaces `max_new_tokens` for single groups."""

    max_new_tokens: int = Field(ge=1)
    min_new_tokens: int = Field(1, ge=0)
    by_group: dict[str, int] = Field(default_factory=dict)
    source: str


class ImageLimits(Strict):
    """Keys of a family's image rule that this benchmark replaces; None keeps the value of the family."""

    max_tiles: int | None = Field(None, ge=1)
    thumbnail: bool | None = None
    source: str


class FamilyRule(Strict):
    """What differs for one model family: pieces of the prompt, image rule, decoding, scorer, options of the loader."""

    prompt: dict[str, str] = Field(default_factory=dict)
    images: ImageLimits | None = None
    generation: GenerationRule | None = None
    scorer: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)


ASKED_LIKE = {"internvl2_5": "internvl2"}
"""Family -> the one whose rules hold where a table names none of its own: one published evaluator asks both, with the
same tiles (6; ChartQA 12, DocVQA 18, InfoVQA 24, a frame 1)."""


OWN_TOKENS = 128
"""Token budget of an answer to a person's own question, where the table names none."""


class ItemCounts(Strict):
    """Items per group of the complete download.

    `at_least`: only a lower bound is known. Groups with the names of the variants are one group of each variant.
    """

    groups: dict[str, int]
    at_least: bool = False
    source: str


class Longest(Strict):
    """The longest prompt of the benchmark: all its tokens, or by `{variant}`; or how many images of it are shown."""

    tokens: int | dict[str, int] | None = None
    images: int = Field(1, ge=0)
    source: str


class Submission(Strict):
    """The file that an evaluation server accepts. `format` is a key of `vlm.eval.run.submission.FORMATS`."""

    file: FileName
    format: str
    server: str
    source: str


class JudgeRule(Strict):
    """What a language model is asked about a reply (vlm.eval.backends.judge).

    `kind`: `grade` it from 0.0 to 1.0, `extract` the answer from it, `choose` the option that it means, or compare the
    `claims` of a summary with an expert's, by one question for each of `parts` (fluency, recall, precision). `fallback`
    names the deterministic rule that reads replies without a judge; None: they are not judged.
    """

    kind: Literal["grade", "extract", "choose", "claims"]
    instruction: str = ""
    parts: dict[Literal["fluency", "recall", "precision"], str] = Field(default_factory=dict)
    max_tokens: int = Field(64, ge=1)
    fallback: str | None = None
    source: str

    @model_validator(mode="after")
    def _asks(self) -> Self:
        asked = (
            len(self.parts) == len(("fluency", "recall", "precision")) if self.kind == "claims" else self.instruction
        )
        if not asked:
            raise ValueError("claims needs `parts`: fluency, recall and precision; any other kind an `instruction`")
        return self


class Benchmark(Strict):
    """The table of one benchmark. The facts in it carry their sources.

    Attributes:
        name: Unique; with `{variant}` when there are several variants, as `title` and `folder`.
        loader: Key of `vlm.eval.loaders.LOADERS`.
        folder: The data, below `dataset/`.
        file: A person's own file of questions (vlm.eval.loaders.rows), relative to the home; then only `name` and
            `scorer` must be given besides.
        prompt: Named pieces that the loader joins, byte for byte.
        families: What differs for single model families.
        scorer: A name in `vlm.eval.scorers.SCORERS` for all items, or one per group.
        aggregate: A name in `vlm.eval.scorers.AGGREGATES`. `not_scored`: a server keeps the answers, and scores the
            `submission`.
        longest: How long its longest prompt is; None where it is one question about one image.
        counts: Items per group; None for sets that always have a marker (`mini.json`).
        options: Settings of the loader and the aggregate.
        teacher_forced: The answer is given, and the reply is what the model predicts at each of its tokens
            (vlm.eval.backends.teacher_forcing).
        published: Published numbers. Those of the shipped tables are added to a user's own.
        kind: Whether the benchmark was published, or is ours.
    """

    name: FileName
    title: str
    loader: str
    folder: InsidePath
    file: str | None = None
    variants: list[FileName] = Field(default_factory=list)
    prompt: dict[str, str] = Field(default_factory=dict)
    prompt_source: str
    generation: GenerationRule
    families: dict[str, FamilyRule] = Field(default_factory=dict)
    scorer: str | dict[str, str]
    aggregate: str
    longest: Longest | None = None
    counts: ItemCounts | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    submission: Submission | None = None
    judge: JudgeRule | None = None
    teacher_forced: bool = False
    published: list[PublishedScore] = Field(default_factory=list)
    kind: Literal["published", "ours"] = "published"
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _of_file(cls, given: Any) -> Any:
        """Fill in what the table of a person's own file need not say."""
        if not isinstance(given, dict) or not given.get("file"):
            return given
        usual = {"title": given.get("name"), "folder": given.get("name"), "loader": "rows", "aggregate": "mean"}
        usual |= {
            "prompt_source": "ours",
            "generation": {"max_new_tokens": OWN_TOKENS, "source": "ours"},
            "kind": "ours",
        }
        scorer = given.get("scorer")
        metric = {"metric": scorer if isinstance(scorer, str) else "score"}
        if scorer == "judge":  # the prompt that grades open answers, ours
            usual["judge"] = load_yaml(package_tables("vlm.eval", "benchmarks")["mm-vet"])["judge"]
        options = given.get("options")
        return {**usual, **given, "options": {**metric, **options} if isinstance(options, dict) else options or metric}

    @property
    def max_new_tokens(self) -> int:
        """Return the token budget of an answer, unless the `meta` of an item names another."""
        return self.generation.max_new_tokens

    @property
    def server_scored(self) -> bool:
        """Return whether a server keeps the answers: items have no gold answer, and we compute no score."""
        return self.aggregate == "not_scored"

    def scorer_of(self, group: str) -> str:
        """Return the name of the scorer of a group of items."""
        return self.scorer if isinstance(self.scorer, str) else self.scorer[group]

    def family_rule(self, family: str) -> FamilyRule:
        """Return what differs for a family: its own rule, else that of the family that it is asked like."""
        return self.families.get(family) or self.families.get(ASKED_LIKE.get(family, "")) or FamilyRule()

    def for_family(self, family: str) -> "Benchmark":
        """Return the table as a model family is asked; unchanged for a family that the table does not name."""
        own = self.family_rule(family)
        generation = own.generation or self.generation
        merged = {"prompt": {**self.prompt, **own.prompt}, "options": {**self.options, **own.options}}
        return self.model_copy(update={**merged, "generation": generation, "scorer": own.scorer or self.scorer})

    def image_override(self, family: str) -> dict[str, Any]:
        """Return keys to replace in a family's image rule: `rule.model_copy(update=table.image_override(family))`."""
        images = self.family_rule(family).images
        return images.model_dump(exclude_none=True, exclude={"source"}) if images else {}


def tables(home: Path | None = None) -> dict[str, tuple[Path, str | None]]:
    """Return name -> (YAML file, variant) of all benchmarks: ours, and the user's in `<home>/benchmarks/`."""
    paths = package_tables("vlm.eval", "benchmarks")
    if home is not None:
        paths |= {p.stem: p for p in sorted((home / "benchmarks").glob("*.y*ml"))}
    found: dict[str, tuple[Path, str | None]] = {}
    for stem, path in paths.items():
        variants = _variants(path, path.stat().st_mtime_ns)
        found |= {f"{stem}-{variant}" if variant else stem: (path, variant) for variant in variants}
    return found


@cache
def _variants(path: Path, modified: int) -> list[str | None]:
    """Return the variants of a table, cached by its time of modification: each lookup scans every table."""
    table = None
    with suppress(ConfigError):  # one bad table is no fault of the others; `load_benchmark` names what is wrong
        table = load_yaml(path)
    variants = table.get("variants") if isinstance(table, dict) else None
    return variants if isinstance(variants, list) and variants else [None]


def load_benchmark(name: str, home: Path | None = None) -> Benchmark:
    """Load a table by its name, in any case (`pope`, `POPE`, `digit-haystack-4x`).

    Args:
        name: Name of the benchmark, with its variant.
        home: The user's folder, whose `benchmarks/` may hold more tables.

    Raises:
        UnknownName: No table has the name; with the nearest names.
        ConfigError: The table has faults; names all of them.
    """
    known = tables(home)
    by_lower = {key.lower(): key for key in known}
    if name.lower() not in by_lower:
        raise UnknownName("benchmark", name, known, fix="`vlm list benchmarks` shows them all")
    path, variant = known[by_lower[name.lower()]]
    content = load_yaml(path)
    if home is not None and isinstance(content, dict) and isinstance(content.get("file"), str):
        content = {**content, "name": _own_name(content, path), "file": str(home / Path(content["file"]).expanduser())}
    table = parse(content, Benchmark, where=str(path))
    if variant:
        names = {key: getattr(table, key).replace("{variant}", variant) for key in ("name", "title", "folder")}
        table = table.model_copy(update={**names, **_of_variant(table, variant)})
    return table.model_copy(update={"published": [*table.published, *scores_of(table.name)]})


def _own_name(content: dict[str, Any], path: Path) -> Any:
    """Return the name of a table of a person's own file: that of its YAML file, by which it is called.

    Raises:
        ConfigError: The table says another, under which its results would be those of another benchmark.
    """
    name = content.get("name", path.stem)
    if isinstance(name, str) and name != path.stem:
        raise ConfigError(
            f"{path}: name: {printable(name)}", expected=f"{path.stem}, as the file is called", fix="leave `name` out"
        )
    return name


def _of_variant(table: Benchmark, variant: str) -> dict[str, Any]:
    """Return the published numbers of one variant, its length, and its count where the groups are the variants."""
    published = [number for number in table.published if number.variant in (None, variant)]
    counts = table.counts
    if counts and counts.groups.keys() == set(table.variants):
        counts = counts.model_copy(update={"groups": {variant: counts.groups[variant]}})
    longest = table.longest
    if longest and isinstance(longest.tokens, dict):
        longest = longest.model_copy(update={"tokens": longest.tokens[variant]})
    return {"published": published, "counts": counts, "longest": longest}
