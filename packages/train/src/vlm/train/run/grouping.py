"""The order of an epoch in which each step has samples of one modality.

Published samplers also sort by length inside a global batch; that moves no sample to another step, and here rows are
dealt to processes by length anyway.
"""

from collections.abc import Iterable

import numpy as np

from vlm.core.errors import DataError
from vlm.core.sample.index import Shuffle
from vlm.core.sample.lines import parse_line


def has_media(record: bytes) -> bool:
    """Return whether a line of an annotation file names an image or a video; False for a broken line."""
    try:
        found = parse_line(record, "")
    except DataError:
        return False
    return isinstance(found, dict) and any(found.get(key) for key in ("image", "video"))


def modality_order(media: Iterable[bool], samples: int, *key: int) -> np.ndarray:
    """Permute samples so that each run of `samples` is of one modality; the remainders of both come last, together.

    Args:
        media: for each sample whether it has an image or a video.
        samples: of a step.
        *key: seeds of the permutation.

    Returns:
        int64 [n], the order.

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
