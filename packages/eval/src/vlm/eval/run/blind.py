"""The blind control: every image replaced by one that belongs to another question.

A score that survives it does not come from looking. Ours; the published evaluators have no such control.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from vlm.core.errors import DataError
from vlm.eval.loaders import Item


def shuffle_media(items: Sequence[Item], seed: int = 0) -> list[Item]:
    """The items with their media exchanged by a seeded derangement: each keeps its number of images (and videos),
    none keeps one of its own, and every medium is used as often as before.

    Raises:
        DataError: too few different media, for example one image that all questions share.
    """
    messages = [[{**m, "content": [dict(p) for p in m["content"]]} for m in item.messages] for item in items]
    for kind in ("image", "video"):
        slots = [
            (i, part)
            for i, turns in enumerate(messages)
            for m in turns
            for part in m["content"]
            if part["type"] == kind
        ]
        for (_, part), donor in zip(slots, _derange([(i, p) for i, p in slots], seed), strict=True):
            part.update(donor)
    return [replace(item, messages=turns) for item, turns in zip(items, messages, strict=True)]


def _derange(slots: list[tuple[int, dict]], seed: int) -> list[dict]:
    """One donor part for each slot (item number, part), never a path the slot's own item holds."""
    own: dict[int, set[str]] = {}
    for i, part in slots:
        own.setdefault(i, set()).add(part["path"])
    rng = random.Random(f"shuffle-images/{seed}")
    donors = [dict(part) for _, part in slots]
    rng.shuffle(donors)
    for at, (i, _) in enumerate(slots):
        if donors[at]["path"] not in own[i]:
            continue
        candidates = list(range(len(slots)))
        rng.shuffle(candidates)
        for other in candidates:  # swap with any slot where both sides then hold a stranger's medium
            if donors[other]["path"] not in own[i] and donors[at]["path"] not in own[slots[other][0]]:
                donors[at], donors[other] = donors[other], donors[at]
                break
        else:
            raise DataError(
                f"--shuffle-images: item {i} can get no foreign medium; {len(own)} items share "
                f"{len({p['path'] for _, p in slots})} files",
                fix="evaluate more items (a higher --limit), or leave the control out for this benchmark",
            )
    return donors
