"""The longest prompt of a benchmark, by its table: what a plan needs to know before the data are here.

>>> longest_prompt(load_benchmark("Long-VQA-64k"), load_preset("internvl2-2b"))                # doctest: +SKIP
LongestPrompt(tokens=64000, tiles=249, new_tokens=256, ...)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm.core.errors import ConfigError
from vlm.eval.benchmark import Benchmark

if TYPE_CHECKING:
    from vlm.models.specs import ModelSpec

TEXT = 2048
"""Tokens of text that are taken beside the images where a table names no length; ours."""


@dataclass(frozen=True)
class LongestPrompt:
    """Tokens with those of the images, tiles, new tokens at most, and where the numbers come from."""

    tokens: int
    tiles: int
    new_tokens: int
    source: str


def longest_prompt(
    table: Benchmark, spec: "ModelSpec", *, tokens: int | None = None, images: int | None = None
) -> LongestPrompt:
    """Return the longest prompt of a benchmark as a model is asked.

    Args:
        table: The benchmark; its `longest` says how many tokens or images.
        spec: The model: its image rule, with what the table replaces in it, and the tokens of a tile.
        tokens: Instead of the table's, all tokens of the prompt.
        images: Instead of the table's.

    Raises:
        ConfigError: A length that nothing says, or more images than tokens.
    """
    table = table.for_family(spec.family)
    rule = spec.image_rule.model_copy(update=table.image_override(spec.family))
    known, per_tile, each = table.longest, spec.tokens_per_tile, rule.most_tiles
    if known is None and table.kind == "ours" and tokens is None:
        raise ConfigError(f"{table.name}: no table says how long its prompts are", fix="--tokens N, and --images N")
    source = "given" if tokens or images else known.source if known else "one image a question"
    stated = known.tokens if known and images is None else None
    given = tokens or (stated if isinstance(stated, int) else None)  # by variant: `load_benchmark` has chosen
    count = images or (known.images if known else 1)
    new = max([table.generation.max_new_tokens, *table.generation.by_group.values()])
    if given is None:
        tiles = count * each
        return LongestPrompt(tiles * per_tile + TEXT, tiles, new, f"{source}; {TEXT:,} tokens of text: ours")
    tiles = given // per_tile if images is None else images * each  # a long document may be all images
    if tiles * per_tile > given:
        raise ConfigError(
            f"--images {images}: {tiles} tiles are {tiles * per_tile:,} tokens, more than {given:,}",
            expected="--tokens counts those of the images too",
        )
    return LongestPrompt(given, tiles, new, source)
