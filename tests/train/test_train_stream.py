"""The data stream is a pure function of (recipe, seed, step), and every sample it cannot use is named."""

import json
from collections import Counter

import numpy as np
import pytest

from vlm.core.errors import DataError
from vlm.core.sample.index import Shuffle
from vlm.core.sample.packing import pack_greedy
from vlm.core.sample.positions import STRIDES
from vlm.train.run import stream as data
from vlm.train.run.stream import Stream


@pytest.fixture
def stream(recipe, processor):
    return lambda *overrides, **replaced: Stream(recipe(*overrides, **replaced), processor)


def same(a, b):
    return len(a) == len(b) and all(same_row(x, y) for x, y in zip(a, b, strict=True))


def same_row(a, b):
    arrays = ("input_ids", "labels", "weights", "position_ids", "cu_seqlens", "pixels")
    return a.ids == b.ids and all(
        (getattr(a, n) is None) == (getattr(b, n) is None) and np.array_equal(getattr(a, n), getattr(b, n))
        for n in arrays
        if getattr(a, n) is not None or getattr(b, n) is not None
    )


def samples(stream, steps):
    return [pick for step in steps for pick in stream.picks(step)]


def test_a_step_does_not_depend_on_the_steps_read_before(stream):
    first, second = stream(), stream()
    forward = {k: first.step(k).rows for k in range(6)}
    backward = {k: second.step(k).rows for k in reversed(range(6))}
    assert all(same(forward[k], backward[k]) for k in range(6))
    assert not same(forward[0], forward[4]), "steps 0 and 4 are the first of two epochs: their order must differ"
    assert not same(stream("seed=1").step(0).rows, forward[0])


def test_an_epoch_holds_every_sample_once_and_epochs_follow_without_a_gap(stream):
    five = stream("batch.samples=5")  # 24 samples: steps straddle the epochs
    picks = samples(five, range(15))
    for epoch in (0, 1, 2):
        held = [(file, line) for e, file, line in picks if e == epoch]
        assert sorted(held) == [(0, line) for line in range(24)]
    assert [e for e, _, _ in picks] == sorted(e for e, _, _ in picks)
    orders = [[line for e, _, line in picks if e == epoch] for epoch in (0, 1)]
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


@pytest.mark.parametrize("repeat, least, most, total", [(0.5, 0, 1, 12), (2, 2, 2, 48), (1.5, 1, 2, 36)])
def test_repeats_hold_whole_copies_and_a_seeded_part(stream, recipe, repeat, least, most, total):
    entry = {**recipe().data[0].model_dump(), "repeat": repeat}
    repeated = stream("batch.samples=1", data=[entry])
    held = Counter(line for _, _, line in samples(repeated, range(total)))
    counts = [held[line] for line in range(24)]
    assert sum(counts) == total == len(repeated.index)
    assert set(counts) == {least, most}
    assert np.array_equal(repeated.index, stream(data=[entry]).index)
    if least != most:
        assert not np.array_equal(repeated.index, stream("seed=3", data=[entry]).index)


def test_a_mixture_draws_from_all_files(stream, recipe, home, records):
    (home / "dataset/tiny/few.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records[:6]))
    entry = recipe().data[0].model_dump()
    both = stream(data=[entry, {**entry, "name": "few", "file": "dataset/tiny/few.jsonl"}])
    assert Counter(file for _, file, _ in samples(both, range(5))) == {0: 24, 1: 6}


def test_steps_follow_from_epochs(stream, recipe):
    assert stream().total_steps == 6
    assert stream("steps=null", "epochs=1.5").total_steps == int(1.5 * 24 / 6)
    assert stream("steps=null", "epochs=0.01").total_steps == 1


def contexts(row, processor):
    """Positions of the image tokens of each image of a row, in reading order."""
    ids = processor.spec.image_tokens.context_id
    inside = row.input_ids == ids
    starts = np.flatnonzero(inside & ~np.roll(inside, 1))
    ends = np.flatnonzero(inside & ~np.roll(inside, -1))
    return [row.position_ids[a : b + 1] for a, b in zip(starts, ends, strict=True)]


def test_random_strides_are_one_draw_per_image_and_do_not_depend_on_the_order(stream, processor):
    def drawn(overrides, steps):
        one = stream("batch.samples=1", "batch.packing=none", *overrides)
        found = {}
        for step in steps:
            (row,) = one.step(step).rows
            increments = [np.unique(np.diff(c)) for c in contexts(row, processor)]
            assert all(len(i) == 1 for i in increments), "one stride for all tiles of an image"
            found[row.ids[0]] = [float(i[0]) * processor.tokens_per_tile for i in increments]
        return found

    forward, backward = drawn((), range(24)), drawn((), reversed(range(24)))
    assert forward == backward
    strides = [s for many in forward.values() for s in many]
    assert len(strides) == 24 and set(strides) <= {float(s) for s in STRIDES} and len(set(strides)) > 3
    assert any(len(set(many)) == 2 for many in forward.values()), "images of one sample draw apart"
    assert drawn((), range(24, 48)) != forward, "another epoch draws other values"
    assert drawn(("seed=5",), range(24)) != forward
    chosen = drawn(("stride_choices=[2, 8]",), range(24))
    assert {s for many in chosen.values() for s in many} == {2.0, 8.0}
    fixed = drawn(("strides=16",), range(24))
    assert {s for many in fixed.values() for s in many} == {16.0}
    assert stream("strides=null").step(0).rows[0].position_ids.dtype == np.int64


def test_each_frame_of_a_video_draws_its_own_stride(stream, recipe, home, records, processor):
    frames = home / "dataset/tiny/clip"
    frames.mkdir(exist_ok=True)
    for i in range(3):
        (frames / f"{i}.png").write_bytes((home / "dataset/tiny" / records[1]["image"][0]).read_bytes())
    turns = [{"from": "human", "value": "<video>\nWhat is it?"}, {"from": "gpt", "value": "A clip"}]
    (home / "dataset/tiny/clip.jsonl").write_text(json.dumps({"id": "v", "video": "clip", "conversations": turns}))
    entry = {"name": "clip", "file": "dataset/tiny/clip.jsonl", "root": "dataset/tiny"}
    data = stream("batch.samples=1", data=[entry]).step(0)
    assert data.lost == []
    increments = {float(np.diff(c)[0]) for c in contexts(data.rows[0], processor)}
    assert len(increments) > 1


def test_rows_respect_the_limits_and_hold_every_sample(stream):
    for max_tiles in (99, 10):
        packed = stream("batch.samples=24", f"batch.max_tiles={max_tiles}").step(0)
        single = stream("batch.samples=24", "batch.packing=none").step(0)
        assert sorted(i for row in packed.rows for i in row.ids) == sorted(i for row in single.rows for i in row.ids)
        assert max(len(row.input_ids) for row in packed.rows) <= 512
        tiles = [0 if row.pixels is None else len(row.pixels) for row in packed.rows]
        assert max(tiles) <= max_tiles and (max_tiles == 99) == (max(tiles) > 10)
        assert len(packed.rows) < len(single.rows) == 24
        assert all(row.cu_seqlens[-1] == len(row.input_ids) for row in packed.rows)
        documents = {i: n for row in packed.rows for i, n in zip(row.ids, np.diff(row.cu_seqlens), strict=True)}
        assert documents == {row.ids[0]: len(row.input_ids) for row in single.rows}
        assert sum(row.weight for row in packed.rows) == pytest.approx(sum(row.weight for row in single.rows))


def test_the_published_buffer_is_an_option(stream, processor):
    alone = stream("batch.samples=24", "batch.packing=none").step(0).rows
    lengths = [len(row.input_ids) for row in alone]
    # as published, a text-only sample counts one dummy tile
    tiles = [1 if row.pixels is None else len(row.pixels) for row in alone]
    for max_tokens, max_tiles in ((512, 99), (512, 13), (200, 99)):
        limits = (f"batch.max_tokens={max_tokens}", f"batch.max_tiles={max_tiles}", "max_length=200")
        rows = stream("batch.samples=24", "batch.packing=greedy", *limits).step(0).rows
        expected = pack_greedy(lengths, tiles, max_tokens, max_tiles)
        assert [row.ids for row in rows] == [[alone[i].ids[0] for i in group] for group in expected]


@pytest.mark.parametrize("in_memory", [0, 10**6])
def test_an_order_too_long_for_memory_is_as_good_as_one_that_is_not(stream, monkeypatch, in_memory):
    monkeypatch.setattr(Shuffle.__init__, "__kwdefaults__", {"in_memory": in_memory})
    data._order.cache_clear()
    five = stream("batch.samples=5")
    picks = samples(five, range(10))
    for epoch in (0, 1):
        assert sorted(line for e, _, line in picks if e == epoch) == list(range(24))
    assert samples(five, range(10)) == samples(stream("batch.samples=5"), range(10))
    data._order.cache_clear()


def test_the_order_is_the_one_of_earlier_versions(stream):
    """Runs made before the order could be computed continue with the same samples."""
    order = np.random.default_rng([0, 0, 0x6F72]).permutation(24)
    assert [line for _, _, line in samples(stream(), range(4))] == order.tolist()


def test_a_sample_with_more_tiles_than_a_row_may_hold_is_dropped_by_name(stream):
    data = stream("batch.samples=24", "batch.max_tiles=4").step(0)
    assert data.lost and data.n_dropped == len(data.lost) and {one.stage for one in data.lost} == {"pack"}
    assert all("tiles, batch.max_tiles is 4" in one.reason for one in data.lost)
    assert len(data.lost) + sum(len(row.ids) for row in data.rows) == 24


def test_missing_data_and_a_wrong_count_are_errors(stream, recipe):
    entry = recipe().data[0].model_dump()
    with pytest.raises(DataError, match=r"no such file: .*nothing\.jsonl"):
        stream(data=[{**entry, "file": "nothing.jsonl"}])
    with pytest.raises(DataError, match=r"24 records\n  expected: 25"):
        stream(data=[{**entry, "count": 25}])
    stream(data=[{**entry, "count": 24}])
