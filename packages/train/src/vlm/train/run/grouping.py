"""An order of an epoch in which each step holds one modality.

Sorting by length inside a global batch, which published samplers did too, moves no sample to another step; here rows
are dealt to processes by length anyway.
"""

import json
from collections.abc import Iterable

import numpy as np

from vlm.core.sample.index import Shuffle


def has_media(record: bytes) -> bool:
    """Whether a line of an annotation file names an image or a video; a broken line has none."""
    try:
        found = json.loads(record)
    except ValueError:
        return False
    return isinstance(found, dict) and any(found.get(key) for key in ("image", "images", "video"))


def modality_order(media: Iterable[bool], samples: int, *key: int) -> np.ndarray:
    """int64 [n]: a permutation in which each run of `samples` is of one modality, a function of `key`; the remainders
    of both come last, together.

    Source: LLaVA's sampler for `group_by_modality_length` (alibaba/conv-llava), without its sorting.
    """
    flags = np.fromiter(media, bool)
    kinds = [np.flatnonzero(flags == kind) for kind in (True, False)]
    kinds = [kind[[*Shuffle(len(kind), *key, i)]] if len(kind) else kind for i, kind in enumerate(kinds)]
    whole = [kind[: len(kind) - len(kind) % samples].reshape(-1, samples) for kind in kinds]
    steps = np.concatenate(whole)
    steps = steps[[*Shuffle(len(steps), *key, 2)]] if len(steps) else steps
    rest = [kind[len(kind) - len(kind) % samples :] for kind in kinds]
    return np.concatenate([steps.reshape(-1), *rest])
