"""Packs against those that the published packed dataset emitted."""

import numpy as np
import pytest

from vlm.core.errors import DataError
from vlm.core.sample.encode import IGNORE, Encoded, len2weight
from vlm.core.sample.packing import pack_greedy
from vlm.train.run.stream import make_row


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


def encoded(pack) -> list[Encoded]:
    """The samples of a recorded pack as our encoder gives them: no dummy tiles, whose flag is 0."""
    supervised = np.isin(np.arange(pack["num_tokens"]), pack["label_positions"])
    ids = np.array(pack["input_ids"])
    ends = np.cumsum([segment["tokens"] for segment in pack["segments"]])[:-1]
    parts = (np.split(a, ends) for a in (ids, np.where(supervised, ids, IGNORE), np.array(pack["position_ids"])))
    names = [str(segment["sample"]) for segment in pack["segments"]]
    return [Encoded(name, *arrays, [], None, [1.0]) for name, *arrays in zip(names, *parts, strict=True)]


@pytest.mark.cases("packing.json", "cases")
def test_rows_equal_the_published_batches(case, decisions):
    if not case.get("collated"):
        assert case["config"]["replacement"] or "raises" in case, "a case without batches"
    for batch in case.get("collated", []):
        pack = case["packs"][batch["pack"]]
        row = make_row(encoded(pack), batch["loss_reduction"])
        n = len(row.input_ids)
        padding = batch["input_ids_shape"][1] - n
        if padding:  # a row of its own length has none: `cu_seqlens` tells documents, and a batch is one row
            assert decisions.decide("packing.json", case).ours == "not padded"
            assert batch["statistics"]["num_padding_tokens"] == padding and not any(batch["loss_weight"][n:])
        assert row.cu_seqlens.tolist() == [c for c in batch["cu_seqlens"][0] if c <= n]
        assert row.weights == pytest.approx(np.array(batch["loss_weight"][:n]), abs=1e-7)
        assert row.position_ids.tolist() == pytest.approx(batch["position_ids"][:n], abs=1e-4)
        assert len(row.ids) == batch["statistics"]["num_samples"]


@pytest.mark.cases("packing.json", "micro_batches")
def test_rows_of_a_micro_batch_are_those_published_without_padding(case, decisions):
    assert decisions.decide("packing.json", case).ours == "rows one by one"
    rows = [make_row(encoded(pack), "square") for pack in case["rows"]]
    for i, row in enumerate(rows if "raises" not in case else []):
        n = len(row.input_ids)
        assert row.input_ids.tolist() == case["input_ids"][i][:n]
        assert row.labels.tolist() == case["labels"][i][:n]
        assert row.weights == pytest.approx(np.array(case["loss_weight"][i][:n]), abs=1e-7)
        assert row.position_ids.tolist() == case["position_ids"][i][:n]
        assert row.cu_seqlens.tolist() == [c for c in case["cu_seqlens"][i] if c <= n]
        assert not any(case["loss_weight"][i][n:]) and set(case["labels"][i][n:]) <= {IGNORE}
    # what upstream fills up with has no label, as the row that a rank without one repeats with weight 0
    for missing in range(len(rows), case["micro_num"]):
        assert set(case["labels"][missing]) == {IGNORE} and not any(case["loss_weight"][missing])


@pytest.mark.cases("packing.json", "len2weight")
def test_weight_of_a_label_equals_the_published_one(case):
    for kind in ("token", "sample", "square"):
        assert len2weight(case["effective_tokens"], kind) == case[kind]
