"""A recipe: one stage of training as data. YAML in `recipes/`, one level of `base:`, every number with a source."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from vlm.core.config import Strict, find_table, load_yaml, package_tables, parse
from vlm.core.errors import ConfigError
from vlm.core.positions import STRIDES


class DataEntry(Strict):
    """One annotation file. `root`: where its media paths start; `repeat`: how often an epoch holds it (0.5 = half)."""

    name: str
    file: str
    root: str
    repeat: float = 1.0
    count: int | None = None


class Model(Strict):
    """`start`: the checkpoint to train from, a path below the home, a name below `pretrained/`, or `{run}/...`;
    `preset`: the published shape, used to plan before the weights are here."""

    start: str
    preset: str


class Optimizer(Strict):
    """AdamW. `decay`: `intended` spares norms, biases, LayerScale, embeddings; `published` does as the scripts did."""

    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 1.0
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup: float = 0.03
    decay: Literal["intended", "published"] = "intended"
    groups: dict[str, float] = Field(default_factory=dict)


class Batch(Strict):
    """A step takes `samples` consecutive samples of the epoch's order and packs them into rows of at most
    `max_tokens` tokens and `max_tiles` tiles: `best_fit` (ours), `greedy` (the published buffer of 20 open packs), or
    `none`, where each sample has a row of its own."""

    samples: int
    max_tokens: int
    max_tiles: int = 1_000_000
    packing: Literal["best_fit", "greedy", "none"] = "best_fit"


class Zero(Strict):
    """DeepSpeed ZeRO stage and whether optimiser states stay on the CPU."""

    stage: Literal[0, 1, 2, 3] = 0
    offload: bool = False


class Hardware(Strict):
    """What the published run used; `vlm train` refuses to start with less unless `--force`."""

    gpus: int
    memory_gb: int
    note: str = ""


class Difference(Strict):
    """A place where published sources disagree, or where we differ from them on purpose."""

    key: str
    ours: str
    published: str
    why: str


class Recipe(Strict):
    """One stage. `trainable`: module patterns such as `encoder.stages.4.*`; everything else is frozen.

    `sources` maps a dotted key (or a prefix of one) to where its number comes from; `""` covers the rest.
    """

    name: str
    title: str
    model: Model
    data: tuple[DataEntry, ...]
    trainable: tuple[str, ...]
    optimizer: Optimizer
    batch: Batch
    epochs: float | None = None
    steps: int | None = None
    strides: float | Literal["random"] | None = None
    stride_choices: tuple[float, ...] = STRIDES
    loss: Literal["token", "sample", "square"] = "token"
    max_length: int
    precision: Literal["float32", "bfloat16"] = "float32"
    zero: Zero = Zero()
    gradient_checkpointing: bool = False
    save_every: int = 500
    keep: int = 2
    seed: int = 0
    max_lost: float = 0.01
    hardware: Hardware | None = None
    differences: tuple[Difference, ...] = ()
    sources: dict[str, str]

    @model_validator(mode="wrap")
    @classmethod
    def check(cls, data: Any, build: ModelWrapValidatorHandler["Recipe"]) -> "Recipe":
        """Every fault at once: pydantic's (keys, types) and those that only the whole recipe shows."""
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
        """The ZeRO stage in effect. Stage 0 keeps no float32 weights beside bfloat16 ones: small updates would vanish
        without a word, so bfloat16 takes stage 1."""
        return max(1, self.zero.stage) if self.precision == "bfloat16" else self.zero.stage

    @property
    def digest(self) -> str:
        """sha256 of everything that changes the numbers (titles, sources, limits and saving habits do not)."""
        habits = {"title", "sources", "save_every", "keep", "max_lost", "hardware", "differences"}
        kept = self.model_dump(mode="json", exclude=habits)
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def whole_faults(recipe: dict[str, Any]) -> list[tuple[str, Any]]:
    """(key, what is wrong) of rules over several keys."""
    faults: list[tuple[str, Any]] = []
    if (recipe.get("epochs") is None) == (recipe.get("steps") is None):
        faults.append(("epochs", "give exactly one of `epochs` and `steps`"))
    sources = recipe.get("sources")
    given = {k: v for k, v in recipe.items() if k != "sources"}
    if bare := [k for k in numbers(given) if not covered(k, sources if isinstance(sources, dict) else {})]:
        faults.append(("sources", f"numbers without a source: {', '.join(bare)}"))
    batch, longest = recipe.get("batch"), recipe.get("max_length")
    if isinstance(batch, dict) and batch.get("packing", "best_fit") != "none":
        room = batch.get("max_tokens")
        if isinstance(longest, int) and isinstance(room, int) and longest > room:
            faults.append(("max_length", f"a sample of max_length tokens fits in no row of batch.max_tokens = {room}"))
    return faults


def numbers(value: Any, key: str = "") -> list[str]:
    """Dotted keys of all numbers below `value`."""
    if isinstance(value, dict):
        return [n for k, v in value.items() for n in numbers(v, f"{key}.{k}".lstrip("."))]
    if isinstance(value, (list, tuple)):
        return [n for v in value for n in numbers(v, key)]
    return [key] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def covered(key: str, sources: dict[str, str]) -> bool:
    return any(key == s or key.startswith(s + ".") or s == "" for s in sources)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on `base`: mappings merge key by key, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result


def load_recipe(name: str, *, run: str | None = None, overrides: tuple[str, ...] = ()) -> Recipe:
    """A shipped recipe by name, or a YAML file. `{run}` in paths becomes `run`; overrides are `key.path=value` (YAML).

    Raises:
        UnknownName: with the nearest recipes. ConfigError: every fault at once.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else find_table("recipe", name, "vlm.train", "recipes")
    data = mapping(path)
    if base := data.pop("base", None):
        base_path = path.with_name(f"{base}.yaml")
        if not base_path.exists():
            base_path = find_table("recipe", str(base), "vlm.train", "recipes")
        below = mapping(base_path)
        if "base" in below:
            raise ConfigError(f"{path.name}: base {base} has a base itself", expected="one level of `base:`")
        data = merged(below, data)
    data.setdefault("name", path.stem)
    for override in overrides:
        key, _, value = override.partition("=")
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r} is not valid YAML", expected="key.path=value") from error
        if not value or not key:
            raise ConfigError(f"override {override!r}", expected="key.path=value")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        data = merged(data, nested)
        data = merged(data, {"sources": {key: "override on the command line"}})
    text = json.dumps(data, default=str).replace("{run}", run or "runs/" + str(data["name"]).split("-")[0])
    return parse(json.loads(text), Recipe, where=path.name)


def mapping(path: Path) -> dict[str, Any]:
    """The keys of a YAML file."""
    data = load_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {data!r:.40}", expected="the keys of a recipe")
    return data


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(package_tables("vlm.train", "recipes"))
