"""Key patterns: how the tensor names of a published checkpoint become ours, and back.

>>> rename(["mlp1.3.bias"], {"mlp1.{}.bias": "projector.{}.bias"}).renamed
{'mlp1.3.bias': 'projector.3.bias'}

`{}` matches an index (of a layer, a stage, a block); None drops a key by name. Our names are `encoder.*`, `projector.*`
and `language_model.*` (transformers' Llama names).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

Patterns = dict[str, str | None]
"""Their name -> our name, or None for a key that is dropped."""


@dataclass
class Renaming:
    """Result of applying patterns to the keys of a checkpoint: every key is renamed, dropped by name, or unknown."""

    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """Return a regular expression that matches whole keys, with one group for each `{}`."""
    return re.compile("^" + re.escape(pattern).replace(r"\{\}", r"(\d+)") + "$")


def rename(keys: Iterable[str], patterns: Patterns) -> Renaming:
    """Rename every key by the first pattern that matches it."""
    result = Renaming()
    for key in keys:
        for pattern, target in patterns.items():
            if match := compiled(pattern).match(key):
                if target is None:
                    result.dropped.append(key)
                else:
                    result.renamed[key] = target.format(*match.groups())
                break
        else:
            result.unknown.append(key)
    return result


def inverted(patterns: Patterns) -> Patterns:
    """Return the patterns from our names to theirs; dropped keys are left out."""
    return {ours: theirs for theirs, ours in patterns.items() if ours is not None}


def prefixed(patterns: Patterns, theirs: str, ours: str) -> Patterns:
    """Return the patterns with a prefix before their names and one before ours."""
    return {theirs + key: name and ours + name for key, name in patterns.items()}


def weight_and_bias(patterns: Patterns) -> Patterns:
    """Return the patterns with `{kind}` written out for weight and bias."""
    return {
        key.replace("{kind}", kind): name and name.replace("{kind}", kind)
        for key, name in patterns.items()
        for kind in ("weight", "bias")
    }


def without_layers(patterns: Patterns, path: str, layers: Iterable[int]) -> Patterns:
    """Return the patterns with those layers of `path.{}` dropped by name: layers behind the selected one."""
    marked = path + ".{}"
    dropped: Patterns = {
        key.replace(marked, f"{path}.{layer}", 1): None
        for layer in layers
        for key in patterns
        if key.startswith(marked)
    }
    return {**dropped, **patterns}
