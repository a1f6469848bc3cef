"""What a model loses in a layout that cannot express it: refused, or allowed by name and written into the model card.

>>> losses(load_preset("tiny-internvl2").model_copy(update={"strides": 64.0}), "hf").keys()
dict_keys(['strides'])
"""

from collections.abc import Collection
from itertools import groupby

from vlm.core.errors import ConfigError, UnknownName
from vlm.core.sample.tiling import grids
from vlm.models.checkpoint.formats import FORMATS
from vlm.models.checkpoint.formats.schema import StoredFacts
from vlm.models.specs import ModelSpec

LOSSES = ("strides", "thumbnail", "grids", "resize")
"""What `vlm weights convert --allow` takes."""


READERS = {
    "internvl": "the published InternVL code and vLLM, with the *.py files of a release (--remote-code)",
    "llava": "the published ConvLLaVA code, from any working directory; transformers' own Llava has no ConvNeXt",
    "hf": "transformers, its servers, vLLM and peft",
    "vlm": "vlm",
}
"""Layout -> what opens it."""


def opens_in(spec: ModelSpec, tokens_per_tile: int) -> dict[str, str]:
    """Return layout -> what opens a model in it, and what is lost; or "no: ..." with what it cannot express."""
    found = {}
    for name, module in FORMATS.items():
        lost = losses(spec, name)
        try:
            module.write(spec, StoredFacts("float32", tokens_per_tile, {}))
        except ConfigError as error:
            found[name] = f"no: {error.found}"
            continue
        v2pe = name == "internvl" and spec.strides is not None
        reader = "the published V2PE code, with its *.py files (--remote-code)" if v2pe else READERS.get(name, "vlm")
        found[name] = reader + "".join(f"; --allow {key} loses {text}" for key, text in lost.items())
    return found


def losses(spec: ModelSpec, to: str) -> dict[str, str]:
    """Return name -> sentence of each setting that changes pixels or positions and has no key in the layout `to`."""
    rule, found = spec.image_rule, {}
    if to in ("hf", "llava") and spec.strides is not None:
        found["strides"] = (
            f"the V2PE strides ({spec.strides:g} positions a tile): positions are counted 0, 1, 2, ... there"
        )
    if to == "hf" and rule.kind == "tiles":
        if not rule.thumbnail and rule.max_tiles > 1:
            found["thumbnail"] = "tiles without a thumbnail: one is added there to every image of several tiles"
        if not same_order(rule.min_tiles, rule.max_tiles):
            found["grids"] = (
                f"the published order of equally near grids of {rule.min_tiles} to {rule.max_tiles} tiles: "
                "some images are cut into other grids there"
            )
    if to in ("internvl", "llava") and rule.resize == "fast":
        found["resize"] = "the fast resize: Pillow's is used there, and some bytes differ by a few units"
    return found


def same_order(min_tiles: int, max_tiles: int) -> bool:
    """Return whether transformers tries grids of equal area in our order; from one tile on, order does not matter."""
    if min_tiles == 1:
        return True
    ordered = grids(min_tiles, max_tiles)
    return all(list(group) == sorted(group) for _, group in groupby(ordered, key=lambda grid: grid[0] * grid[1]))


def refuse_losses(found: dict[str, str], to: str, allow: Collection[str]) -> None:
    """Raise unless everything that is lost was allowed.

    Raises:
        UnknownName: `allow` names something else.
        ConfigError: a loss that was not allowed, with its name.
    """
    for name in allow:
        if name not in LOSSES:
            raise UnknownName("loss", name, LOSSES)
    if refused := [name for name in found if name not in allow]:
        options = " ".join(f"--allow {name}" for name in refused)
        raise ConfigError(
            "\n".join(f"{found[name]}; this has no place in the {to} layout" for name in refused),
            expected="a layout that holds the whole model: `--to vlm`, or `--to internvl` for an InternViT",
            fix=f"choose another --to; or {options}: the folder is written without it, and its README.md says so",
        )


def model_card(source: str, to: str, found: dict[str, str]) -> str:
    """Return the README.md of a folder that lost something."""
    lines = [f"- **{name}**: {text}." for name, text in found.items()]
    return "\n".join(
        [
            f"# {source} in the {to} layout",
            "",
            "This copy does not compute what the original does. Software that reads the published keys of this layout",
            "loses:",
            "",
            *lines,
            "",
            "`vlm` reads the original settings back from `config.json` (key `vlm`).",
            "",
        ]
    )
