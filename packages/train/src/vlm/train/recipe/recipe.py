"""A recipe: one stage of training as data, in YAML; what is shipped has a source for every number.

>>> load_recipe("convllava-stage3", overrides=("optimizer.lr=1e-4",)).optimizer.lr
0.0001
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, PositiveInt, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from vlm.core.config import Strict, find_table, load_yaml, package_tables, parse, parse_yaml
from vlm.core.errors import ConfigError
from vlm.core.home import lookup
from vlm.core.paths import FileName, is_name
from vlm.core.sample.positions import STRIDES, default_stride
from vlm.core.text import printable
from vlm.models.specs import ModelSpec, load_preset
from vlm.train.recipe.sections import AboveZero, Share
from vlm.train.recipe.sections import BatchSettings as BatchSettings
from vlm.train.recipe.sections import DataEntry as DataEntry
from vlm.train.recipe.sections import Difference as Difference
from vlm.train.recipe.sections import Hardware as Hardware
from vlm.train.recipe.sections import Lora as Lora
from vlm.train.recipe.sections import Model as Model
from vlm.train.recipe.sections import Optimizer as Optimizer
from vlm.train.recipe.sections import SequenceParallel as SequenceParallel
from vlm.train.recipe.sections import Zero as Zero

Quality = Annotated[int, Field(ge=1, le=100)]
"""A JPEG quality."""


class Recipe(Strict):
    """One stage of training; `load_recipe` makes it from YAML.

    >>> load_recipe("v2pe-256k").sequence_parallel.size
    8

    Attributes:
        name: of the recipe.
        title: one line for people.
        model: the start checkpoint.
        data: the mixture.
        eval_data: records that are not trained on; their loss is measured at each checkpoint and at the end.
        trainable: parameter patterns such as `encoder.stages.4.*`; everything else is frozen, except the adapters.
        lora: adapters.
        optimizer: AdamW and its schedule.
        batch: samples of a step and their packing.
        epochs: length of the run; give this or `steps`.
        steps: length of the run.
        strides: position increment of an image over its tokens: None for plain positions, `random` for one draw for
            each image.
        stride_choices: values of the draw.
        loss: weight of a label: each token the same, each sample the same, or by the square root of its length.
        max_length: tokens of a sample.
        jpeg_quality: recompress tiles at a quality drawn between these two.
        precision: of training.
        zero: DeepSpeed's ZeRO.
        sequence_parallel: processes that share a row.
        gradient_checkpointing: recompute layers in the backward pass.
        save_every: steps between checkpoints, at least 1.
        keep: checkpoints that stay on disk, at least 1.
        seed: of order, strides, dropout and adapters.
        max_lost: share of the run's samples that may be dropped.
        sample_seconds: longest wait for one sample; then it is dropped, as one that cannot be read.
        allow_outside: folders outside of the roots of `data` that its records may name.
        mini: train on generated miniatures of benchmarks, on purpose.
        log: boards beside metrics.jsonl.
        hardware: of the published run.
        differences: from what was published.
        sources: dotted key, or a prefix of one -> where its number comes from; `""` covers the rest.
    """

    name: FileName
    title: str
    model: Model
    data: tuple[DataEntry, ...]
    eval_data: Annotated[tuple[DataEntry, ...], Field(exclude_if=lambda value: not value)] = ()
    trainable: tuple[str, ...]
    lora: Lora | None = None
    optimizer: Optimizer
    batch: BatchSettings
    epochs: AboveZero | None = None
    steps: PositiveInt | None = None
    strides: AboveZero | Literal["random"] | None = None
    stride_choices: Annotated[tuple[AboveZero, ...], Field(min_length=1)] = STRIDES
    loss: Literal["token", "sample", "square"] = "token"
    max_length: PositiveInt
    jpeg_quality: tuple[Quality, Quality] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    zero: Zero = Zero()
    sequence_parallel: SequenceParallel = SequenceParallel()
    gradient_checkpointing: bool = False
    save_every: PositiveInt = 500
    keep: PositiveInt = 2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    max_lost: Share = 0.01
    sample_seconds: AboveZero = 300.0
    allow_outside: tuple[str, ...] = ()
    mini: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    hardware: Hardware | None = None
    differences: tuple[Difference, ...] = ()
    sources: dict[str, str]

    @model_validator(mode="wrap")
    @classmethod
    def check(cls, data: Any, build: ModelWrapValidatorHandler["Recipe"]) -> "Recipe":
        """Report every fault at once: pydantic's (keys, types) and those that only the whole recipe shows."""
        faults: list[InitErrorDetails] = []
        try:
            recipe = build(data)
            view = recipe.model_dump(exclude_defaults=True)
        except ValidationError as error:
            view = data if isinstance(data, dict) else {}
            for e in error.errors():
                faults.append({"type": e["type"], "loc": e["loc"], "input": e["input"], "ctx": e.get("ctx", {})})
        for key, message in whole_faults(view):
            faults.append({"type": PydanticCustomError("recipe", message), "loc": (key,), "input": view.get(key)})
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return recipe

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage in effect: at least 1 for bfloat16.

        Stage 0 keeps no float32 weights beside bfloat16 ones, so small updates would be lost silently.
        """
        return max(1, self.zero.stage) if self.precision == "bfloat16" else self.zero.stage

    def total_steps(self, samples: int) -> int:
        """Return the steps of the run when a pass has that many samples: whole steps, at least one."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None  # the validator checks it
        return max(1, int(self.epochs * samples / self.batch.samples))

    def unseen(self, samples: int) -> int:
        """Return how many samples at the end of the last pass no step takes, because they do not fill one.

        transformers' Trainer left them out too where it accumulated gradients: it rounded the micro-batches of a pass
        up, and the steps that they fill down. Without accumulation its last step was a short one.
        """
        if self.epochs is None:
            return 0
        return max(0, round(self.epochs * samples) - self.total_steps(samples) * self.batch.samples)

    @property
    def digest(self) -> str:
        """The sha256 of everything that changes the numbers (titles, sources, limits, saving and measuring do not)."""
        habits = {
            "title",
            "sources",
            "eval_data",
            "save_every",
            "keep",
            "max_lost",
            "sample_seconds",
            "allow_outside",
            "log",
            "hardware",
            "differences",
        }
        kept = self.model_dump(mode="json", exclude={**dict.fromkeys(habits, True), "model": {"parts"}})
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def whole_faults(recipe: dict[str, Any]) -> list[tuple[str, Any]]:
    """Check the rules over several keys; return (key, what is wrong)."""
    faults: list[tuple[str, Any]] = []
    if (recipe.get("epochs") is None) == (recipe.get("steps") is None):
        faults.append(("epochs", "give exactly one of `epochs` and `steps`"))
    sources = recipe.get("sources")
    given = {
        k: v for k, v in recipe.items() if k not in ("sources", "differences")
    }  # a difference names its source itself
    if bare := [k for k in numbers(given) if not covered(k, sources if isinstance(sources, dict) else {})]:
        faults.append(("sources", f"numbers without a source: {', '.join(bare)}"))
    for key in ("data", "eval_data"):
        listed = recipe[key] if isinstance(recipe.get(key), (list, tuple)) else ()
        entries = [entry.get("name") for entry in listed if isinstance(entry, dict)]
        if twice := sorted({str(name) for name in entries if entries.count(name) > 1}):
            faults.append((key, f"two entries are named {', '.join(twice)}: the ledger could not tell them apart"))
    batch, longest = recipe.get("batch"), recipe.get("max_length")
    if isinstance(batch, dict) and batch.get("packing", "best_fit") != "none":
        room = batch.get("max_tokens")
        if isinstance(longest, int) and isinstance(room, int) and longest > room:
            faults.append(("max_length", f"a sample of max_length tokens fits in no row of batch.max_tokens = {room}"))
    quality = recipe.get("jpeg_quality")
    if (
        isinstance(quality, (list, tuple))
        and all(isinstance(q, int) for q in quality)
        and sorted(quality) != [*quality]
    ):
        faults.append(("jpeg_quality", "the first quality must not be above the second"))
    if not recipe.get("trainable", True) and not recipe.get("lora"):
        faults.append(("trainable", "nothing is trained: give patterns, or `lora`"))
    model = recipe.get("model")
    if isinstance(model, dict) and model.get("spec") and isinstance(model.get("preset"), str):
        try:
            training_spec(Model(**model), load_preset(model["preset"]))
        except (ConfigError, ValidationError) as error:
            faults.append(("model.spec", str(error).splitlines()[0]))
    return faults


def trained_strides(recipe: Recipe, tokens_per_tile: int) -> dict[str, Any]:
    """Return what a checkpoint says of its V2PE strides: the one to use by default, and what training drew from."""
    if recipe.strides != "random":
        return {"strides": recipe.strides, "stride_choices": None}
    choices = tuple(map(float, recipe.stride_choices))
    return {"strides": default_stride(choices, tokens_per_tile), "stride_choices": choices}


def training_spec(model: Model, spec: ModelSpec) -> ModelSpec:
    """Return the spec of a checkpoint with the keys that a recipe changes.

    `image_rule` may be a name of `ModelSpec.with_image_rule`, such as `whole:576`. Raises ConfigError for unknown keys.
    """
    changes = dict(model.spec)
    named = changes.pop("image_rule") if isinstance(changes.get("image_rule"), str) else None
    spec = parse(merged(spec.model_dump(), changes), ModelSpec, where="model.spec") if changes else spec
    return spec if named is None else spec.with_image_rule(named)


def numbers(value: Any, key: str = "") -> list[str]:
    """Return the dotted keys of all numbers in `value`."""
    if isinstance(value, dict):
        return [n for k, v in value.items() for n in numbers(v, f"{key}.{k}".lstrip("."))]
    if isinstance(value, (list, tuple)):
        return [n for v in value for n in numbers(v, key)]
    return [key] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def covered(key: str, sources: dict[str, str]) -> bool:
    """Return whether a source is given for a dotted key."""
    return any(key == s or key.startswith(s + ".") or s == "" for s in sources)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`: mappings key by key, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result


def load_recipe(
    name: str, *, run: str | None = None, overrides: tuple[str, ...] = (), published: bool = False
) -> Recipe:
    """Load a shipped recipe by name, or a YAML file.

    >>> load_recipe("convllava-stage2", run="runs/mine").model.start
    'runs/mine/train/convllava-stage1/model'
    >>> load_recipe("convllava-stage2", published=True).optimizer.lr
    0.001

    Args:
        name: of the recipe, or a path that ends in .yaml.
        run: folder of the run, which `{run}` in paths becomes; default `runs/` and the first word of the name.
        overrides: `key.path=value`, the value as YAML.
        published: use the published values wherever ours differ (`differences`).

    Raises:
        UnknownName: no such recipe; names the nearest.
        ConfigError: every fault at once.
    """
    path = lookup(name) if name.endswith((".yaml", ".yml")) else shipped(name)
    data = raw_recipe(path)
    data.setdefault("name", path.stem)
    if path not in package_tables("vlm.train", "recipes").values():
        data = with_own_sources(data, path)
    if published:
        data = as_published(data)
    data = with_overrides(data, overrides)
    try:
        folder = run or "runs/" + str(data["name"]).split("-")[0]
        text = json.dumps(data, default=str).replace("{run}", json.dumps(folder)[1:-1])
    except TypeError as error:
        raise ConfigError(f"{path.name}: {error}", expected="texts as keys", fix="put quotes around them") from error
    return parse(json.loads(text), Recipe, where=path.name)


def raw_recipe(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the keys of a recipe's file over those of its `base:`, of that one's base, and so on.

    Raises:
        ConfigError: a base that is no name, or that leads in a circle. UnknownName: no such recipe.
    """
    data = mapping(path)
    base = data.pop("base", None)
    if base is None:
        return data
    if not (isinstance(base, str) and is_name(base)):
        raise ConfigError(f"{path.name}: base {printable(base)!r}", expected="the name of a recipe, without a path")
    beside = path.with_name(f"{base}.yaml")
    below = beside if beside.exists() and beside != path else shipped(base)
    if below in above:
        names = " -> ".join(one.stem for one in (*above, path, below))
        raise ConfigError(f"{path.name}: base {base} leads in a circle: {names}", expected="a recipe that ends it")
    return merged(raw_recipe(below, (*above, path)), data)


def with_own_sources(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the keys of a user's recipe, in which the file itself is the source of numbers that name none.

    Only a shipped recipe has to say where each number comes from.
    """
    own = {key: value for key, value in mapping(path).items() if key not in ("base", "differences")}
    said, below = own.pop("sources", None) or {}, data.get("sources") or {}
    if not (isinstance(said, dict) and isinstance(below, dict)):
        return data  # the recipe's own check names it
    bare = {key: path.name for key in numbers(own) if not covered(key, said)}
    return {**data, "sources": {"": path.name, **below, **bare}}


def shipped(name: str) -> Path:
    """Return the file of a shipped recipe. Raises UnknownName with the nearest."""
    return find_table("recipe", name, "vlm.train", "recipes", fix="`vlm list recipes` shows them all")


def with_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a recipe with each `key.path=value` in its place. Raises ConfigError for another form.

    `steps` takes the place of `epochs` and the other way round, unless both are given.
    """
    lengths = {override.partition("=")[0] for override in overrides} & {"epochs", "steps"}
    if len(lengths) == 1:
        data = {key: value for key, value in data.items() if key not in {"epochs", "steps"} - lengths}
    for override in overrides:
        key, _, value = override.partition("=")
        if not value or not key:
            raise ConfigError(f"override {override!r}", expected="key.path=value")
        parsed = parse_yaml(value, where=f"override {override!r:.80}")
        data = with_value(data, key, parsed, "override on the command line")
    return data


def with_value(data: dict[str, Any], key: str, value: Any, source: str) -> dict[str, Any]:
    """Return `data` with the value at a dotted key, and the source of that key."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return merged(merged(data, value), {"sources": {key: source}})


def as_published(data: dict[str, Any]) -> dict[str, Any]:
    """Return `data` with the published values of its differences; those that no key can express stay listed."""
    left = []
    differences = data.get("differences") or ()
    for difference in differences if isinstance(differences, list) else ():
        changes = (difference.get("set") or {}) if isinstance(difference, dict) else {}
        if not isinstance(changes, dict) or not changes:  # the recipe's own check names what is wrong with it
            left.append(difference)
            continue
        for key, value in changes.items():
            data = with_value(data, str(key), value, f"published ({difference.get('published')})")
    return {**data, "differences": left}


def mapping(path: Path) -> dict[str, Any]:
    """Load the keys of a YAML file."""
    data = load_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{printable(path)} holds {printable(repr(data), 40)}", expected="the keys of a recipe")
    return data


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes.

    >>> "v2pe-32k" in recipe_names()
    True
    """
    return sorted(package_tables("vlm.train", "recipes"))
