"""The blind control: every image is replaced by one that belongs to another question.

A score that survives it does not come from the images. Ours; the published evaluators have no such control.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from vlm.core.errors import DataError
from vlm.core.sample.records import Medium, Part
from vlm.eval.loaders import Item


def shuffle_media(items: Sequence[Item], seed: int = 0) -> list[Item]:
    """Return the items with their media exchanged by a seeded derangement.

    Each item keeps its number of images (and videos), none keeps one that it had, and every medium is used as often as
    before.

    Raises:
        DataError: Too few different media, for example one image that all questions share.
    """
    donors = {kind: iter(_derange(items, kind, seed)) for kind in ("image", "video")}

    def exchanged(part: Part) -> Part:
        return part if part["type"] == "text" else cast(Part, {**part, **next(donors[part["type"]])})

    return [
        replace(item, messages=[{**m, "content": [exchanged(p) for p in m["content"]]} for m in item.messages])
        for item in items
    ]


def _derange(items: Sequence[Item], kind: str, seed: int) -> list[Medium]:
    """Return one donor for each medium of that kind, in reading order: never a file that the item itself shows."""
    slots = [
        (i, part)
        for i, item in enumerate(items)
        for message in item.messages
        for part in message["content"]
        if part["type"] != "text" and part["type"] == kind
    ]
    own: dict[int, set[str]] = {}
    for i, part in slots:
        own.setdefault(i, set()).add(part["path"])
    rng = random.Random(f"shuffle-images/{seed}")
    donors = [part for _, part in slots]
    rng.shuffle(donors)
    for at, (i, _) in enumerate(slots):
        if donors[at]["path"] not in own[i]:
            continue
        candidates = list(range(len(slots)))
        rng.shuffle(candidates)
        for other in candidates:  # swap with any slot where both sides then hold another item's medium
            if donors[other]["path"] not in own[i] and donors[at]["path"] not in own[slots[other][0]]:
                donors[at], donors[other] = donors[other], donors[at]
                break
        else:
            raise DataError(
                f"--shuffle-images: item {i} can get no medium of another item; {len(own)} items share "
                f"{len({p['path'] for _, p in slots})} files",
                fix="evaluate more items (a higher --limit), or leave the control out for this benchmark",
            )
    return donors
