"""Packs against those that the published packed dataset emitted."""

from typing import Any

import numpy as np
import pytest
from golden.decisions import decide
from golden.fixtures import Entry

from vlm.core.errors import DataError
from vlm.core.sample.encoded import IGNORE, Encoded, len2weight
from vlm.core.sample.packing import pack_greedy
from vlm.train.run.stream import make_row


def arrival(case: dict[str, Any]) -> list[int]:
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


@pytest.mark.cases("packing/cases")
def test_packs_equal_the_published_ones(entry: Entry) -> None:
    case, config = entry.case, entry.case["config"]
    limits = (config["max_packed_tokens"], config["num_images_expected"])
    by_id = {s["sample"]: s for s in case["samples"]}
    order = arrival(case)
    if config["replacement"]:
        order = order * (len(case["packs"]) + 1)

    def packs_of(order: list[int], longest: float) -> list[list[int]]:
        tokens = [min(by_id[i]["tokens"], longest) for i in order]
        found = pack_greedy(tokens, [by_id[i]["pixel_rows"] for i in order], *limits, config["max_buffer_size"])
        return [[order[i] for i in pack] for pack in found]

    decision = decide("packing/packs", case)
    ours = decision.ours if decision else ""
    if ours == "refused":
        with pytest.raises(DataError, match="limits of a pack"):
            packs_of(order, np.inf)
    order = [i for i in order if by_id[i]["pixel_rows"] <= limits[1]]
    packs = packs_of(order, limits[0])
    if ours == "not split":
        assert sorted(i for p in packs for i in p) == sorted(order)
        assert all(sum(by_id[i]["tokens"] for i in p) <= limits[0] for p in packs)
    else:
        published = [[segment["sample"] for segment in pack["segments"]] for pack in case["packs"]]
        assert packs[: len(published)] == published
        assert config["replacement"] or len(packs) == len(published)


def encoded(pack: dict[str, Any]) -> list[Encoded]:
    """The samples of a recorded pack as our encoder gives them: no dummy tiles, whose flag is 0."""
    supervised = np.isin(np.arange(pack["num_tokens"]), pack["label_positions"])
    ids = np.array(pack["input_ids"])
    ends = np.cumsum([segment["tokens"] for segment in pack["segments"]])[:-1]
    parts = (np.split(a, ends) for a in (ids, np.where(supervised, ids, IGNORE), np.array(pack["position_ids"])))
    samples = zip(pack["segments"], *parts, strict=True)
    return [Encoded(str(s["sample"]), ids, labels, at, [], None, [1.0]) for s, ids, labels, at in samples]


@pytest.mark.cases("packing/cases")
def test_rows_equal_the_published_batches(entry: Entry) -> None:
    case = entry.case
    decision = decide("packing/rows", case)
    if not case.get("collated"):
        assert case["config"]["replacement"] or "raises" in case, "a case without batches"
    for batch in case.get("collated", []):
        pack = case["packs"][batch["pack"]]
        row = make_row(encoded(pack), batch["loss_reduction"])
        n = len(row.input_ids)
        padding = batch["input_ids_shape"][1] - n
        if padding:  # a row has no padding: `cu_seqlens` marks its documents, and a batch is one row
            assert decision is not None and decision.ours == "not padded"
            assert batch["statistics"]["num_padding_tokens"] == padding and not any(batch["loss_weight"][n:])
        assert row.cu_seqlens.tolist() == [c for c in batch["cu_seqlens"][0] if c <= n]
        assert row.weights == pytest.approx(np.array(batch["loss_weight"][:n]), abs=1e-7)
        assert row.position_ids.tolist() == pytest.approx(batch["position_ids"][:n], abs=1e-4)
        assert len(row.ids) == batch["statistics"]["num_samples"]


@pytest.mark.cases("packing/micro_batches")
def test_rows_of_a_micro_batch_are_those_published_without_padding(entry: Entry) -> None:
    case = entry.case
    decision = decide("packing/micro_batches", case)
    assert decision is not None and decision.ours == "rows one by one"
    rows = [make_row(encoded(pack), "square") for pack in case["rows"]]
    if "raises" in case:
        assert len({len(row.input_ids) for row in rows}) > 1, "upstream stacks rows of equal length"
        return
    for i, row in enumerate(rows):
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


@pytest.mark.cases("packing/len2weight")
def test_weight_of_a_label_equals_the_published_one(entry: Entry) -> None:
    case = entry.case
    kinds = [kind for kind in ("token", "sample", "square") if kind in case]
    assert {kind: len2weight(case["effective_tokens"], kind) for kind in kinds} == {kind: case[kind] for kind in kinds}
