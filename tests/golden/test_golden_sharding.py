"""The split of packed rows over processes against the published one."""

import pytest
import torch
from golden.decisions import decide
from golden.fixtures import Entry
from torch import Tensor

from vlm.models.sequence.sharding import LAYOUTS, PADDING, TokenShard


def shards(kind: str, cu_seqlens: list[int], size: int) -> list[TokenShard]:
    """What each process holds."""
    return [LAYOUTS[kind](torch.tensor(cu_seqlens, dtype=torch.int32), rank, size) for rank in range(size)]


@pytest.mark.cases("sharding/splits")
def test_rows_are_split_as_published_and_padded_where_that_fails(entry: Entry) -> None:
    case = entry.case
    size, length = case["world_size"], case["length"]
    decision = decide("sharding/splits", case)
    kinds = [kind for kind in LAYOUTS if kind in case]
    for kind in LAYOUTS if decision else kinds:
        places = [shard.places for shard in shards(kind, [0, length], size)]
        if decision is None:
            assert [p.tolist() for p in places] == case[kind], kind
        else:
            assert decision.ours == "padded"
            held = torch.cat(places)
            assert sorted(held[held != PADDING].tolist()) == list(range(length))
            assert len({len(p) for p in places}) == 1
    assert kinds or decision, "nothing is recorded"


@pytest.mark.cases("sharding/padding")
def test_each_document_is_padded_and_split_as_published_per_sample(entry: Entry) -> None:
    case = entry.case
    pairs = list(zip(case["cu_seqlens"], case["out_cu_seqlens"], case["sample_lengths"], strict=False))
    # place in upstream's padded row -> place in the row; padding is not in it
    at = {padded + k: start + k for start, padded, length in pairs for k in range(length)}
    for shard, places in zip(
        shards("ring", case["cu_seqlens"], case["world_size"]),
        case["token_index_per_rank_if_split_per_sample"],
        strict=True,
    ):
        assert shard.places.tolist() == [at.get(place, PADDING) for place in places]
        # positions of padding are ours to choose: nothing attends to it
        for name, fill in (("input_ids", 1), ("labels", -100), ("loss_weight", 0.0)):
            row: Tensor = torch.tensor([case[name]])
            assert shard.take(row, fill)[0].tolist() == torch.tensor(case[f"out_{name}"])[places].tolist(), name
