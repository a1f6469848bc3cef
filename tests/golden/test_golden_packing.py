"""Packs against those that the published packed dataset emitted."""

import numpy as np
import pytest

from vlm.core.encode import len2weight
from vlm.core.errors import DataError
from vlm.core.packing import pack_greedy


def arrival(case) -> list[int]:
    """Sample indices in the order in which the published dataset drew them."""
    queues = [list(d["samples"]) for d in case["datasets"]]
    weights = np.array(case["dataset_weight"] or [1.0] * len(queues))
    rng = np.random.default_rng(seed=case["config"]["data_rank"])
    order = []
    while weights.sum() > 0:
        chosen = rng.choice(len(queues), p=weights / weights.sum())
        if queues[chosen]:
            order.append(queues[chosen].pop(0))
        else:
            weights[chosen] = 0
    return order


@pytest.mark.cases("packing.json", "cases")
def test_packs_equal_the_published_ones(case, decisions):
    config = case["config"]
    limits = (config["max_packed_tokens"], config["num_images_expected"])
    by_id = {s["sample"]: s for s in case["samples"]}
    order = arrival(case)
    if config["replacement"]:
        order = order * (len(case["packs"]) + 1)
    tokens, tiles = [by_id[i]["tokens"] for i in order], [by_id[i]["pixel_rows"] for i in order]
    decision = decisions.decide("packing.json", case)
    if decision is None:
        assert "raises" not in case, "an upstream fault without a decision"
    elif decision.ours == "refused":
        with pytest.raises(DataError, match="limits of a pack"):
            pack_greedy(tokens, tiles, *limits, config["max_buffer_size"])
        order = [i for i in order if by_id[i]["pixel_rows"] <= limits[1]]
    elif decision.ours == "cut before packing":
        with pytest.raises(DataError, match="limits of a pack"):
            pack_greedy(tokens, tiles, *limits, config["max_buffer_size"])
    tokens = [min(by_id[i]["tokens"], limits[0]) for i in order]
    tiles = [by_id[i]["pixel_rows"] for i in order]
    packs = [[order[i] for i in p] for p in pack_greedy(tokens, tiles, *limits, config["max_buffer_size"])]
    if decision is not None and decision.ours == "not split":
        assert sorted(i for p in packs for i in p) == sorted(order)
        assert all(sum(by_id[i]["tokens"] for i in p) <= limits[0] for p in packs)
    else:
        published = [[segment["sample"] for segment in pack["segments"]] for pack in case["packs"]]
        assert packs[: len(published)] == published
        assert config["replacement"] or len(packs) == len(published)


@pytest.mark.cases("packing.json", "len2weight")
def test_weight_of_a_label_equals_the_published_one(case):
    for kind in ("token", "sample", "square"):
        assert len2weight(case["effective_tokens"], kind) == case[kind]
