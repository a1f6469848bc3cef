import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.core.errors import DataError
from vlm.core.sample.packing import deal, pack, pack_greedy, pack_step

SAMPLES = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 6)), max_size=60)


@given(SAMPLES, st.integers(1, 70), st.integers(0, 8))
def test_packs_respect_both_limits_and_lose_nothing(samples, window, buffer_size):
    lengths, tiles = [s[0] for s in samples], [s[1] for s in samples]
    for packs in (pack(lengths, tiles, 50, 6, window), pack_greedy(lengths, tiles, 50, 6, buffer_size)):
        assert sorted(i for p in packs for i in p) == list(range(len(samples)))
        assert all(sum(lengths[i] for i in p) <= 50 and sum(tiles[i] for i in p) <= 6 for p in packs)
        assert all(packs)


@given(SAMPLES)
def test_packing_is_a_pure_function_of_its_input(samples):
    lengths, tiles = [s[0] for s in samples], [s[1] for s in samples]
    assert pack(lengths, tiles, 50, 6, 20) == pack(list(lengths), list(tiles), 50, 6, 20)


def test_best_fit_prefers_the_fullest_pack_that_has_room():
    # 6 and 5 open two packs; 3 fits better beside 5 than 6 leaves room for, 2 fills the other
    assert pack([6, 5, 3, 2], [1, 1, 1, 1], 8, 4) == [[0, 3], [1, 2]]
    # the fuller pack has no tiles left
    assert pack([6, 5, 2], [4, 1, 1], 8, 4) == [[0], [1, 2]]


def plain_best_fit(lengths, max_tokens):
    """Best-fit-decreasing as the textbook has it: every open pack is looked at."""
    packs, free = [], []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = [(free[k], k) for k in range(len(packs)) if free[k] >= lengths[i]]
        k = min(room)[1] if room else len(packs)
        if not room:
            packs.append([])
            free.append(max_tokens)
        packs[k].append(i)
        free[k] -= lengths[i]
    return packs


@given(st.lists(st.integers(1, 50), max_size=60))
def test_packs_by_tokens_are_those_of_plain_best_fit_decreasing(lengths):
    assert pack(lengths, [0] * len(lengths), 50, 6, window=60) == plain_best_fit(lengths, 50)


@pytest.mark.parametrize("max_tiles", [200, 120, 96, 70, 60, 48])
def test_where_both_limits_bind_packs_are_at_least_as_full_as_those_of_the_published_buffer(max_tiles):
    rng = random.Random(max_tiles)
    lengths = [min(16_384, max(16, int(rng.lognormvariate(7, 1)))) for _ in range(1000)]
    tiles = [rng.randint(0, 12) for _ in lengths]
    ours = pack(lengths, tiles, 16_384, max_tiles)
    bound = max(sum(lengths) / 16_384, sum(tiles) / max_tiles)
    assert len(ours) <= len(pack_greedy(lengths, tiles, 16_384, max_tiles)) and len(ours) < 1.1 * bound + 1
    assert all(sum(tiles[i] for i in p) <= max_tiles and sum(lengths[i] for i in p) <= 16_384 for p in ours)


def test_tiles_that_cannot_bind_do_not_change_the_packs():
    rng = random.Random(0)
    lengths = [rng.randint(1, 4000) for _ in range(500)]
    tiles = [n // 256 for n in lengths]  # a tile is 256 of the tokens
    with_tiles, without = (pack(lengths, t, 16_384, 64, 500) for t in (tiles, [0] * 500))
    assert [sum(lengths[i] for i in p) for p in with_tiles] == [sum(lengths[i] for i in p) for p in without]


def test_samples_of_different_windows_never_share_a_pack():
    assert pack([4, 4, 4, 4], [1] * 4, 16, 9, window=2) == [[0, 1], [2, 3]]


def test_best_fit_fills_better_than_the_published_buffer():
    rng = random.Random(0)
    lengths = [rng.randint(500, 20_000) for _ in range(2000)]
    tiles = [rng.randint(1, 60) for _ in lengths]
    assert len(pack(lengths, tiles, 34_000, 135)) < len(pack_greedy(lengths, tiles, 34_000, 135))


def test_a_hundred_thousand_samples_in_one_window_are_packed_in_seconds():
    rng = random.Random(0)
    lengths = [rng.randint(1, 4000) for _ in range(100_000)]
    tiles = [rng.randint(0, 13) for _ in lengths]
    started = time.perf_counter()
    packs = pack(lengths, tiles, 34_000, 135, window=100_000)
    assert time.perf_counter() - started < 20
    assert sum(map(len, packs)) == 100_000


@pytest.mark.parametrize("packer", [pack, pack_greedy])
def test_a_sample_that_fits_nowhere_is_named(packer):
    with pytest.raises(DataError, match="sample 1 has 9 tokens and 1 tiles"):
        packer([8, 9], [1, 1], 8, 4)
    with pytest.raises(DataError, match="sample 0 has 8 tokens and 5 tiles"):
        packer([8], [5], 8, 4)
    with pytest.raises(DataError, match="2 lengths but 1 tile counts"):
        packer([8, 8], [5], 8, 4)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("lengths", [[5, 9, 2, 9, 1], [7], [4, 4, 4, 4], [9, 1, 1, 1, 1, 1]])
def test_rows_are_dealt_once_and_evenly(world, lengths):
    dealt = deal(lengths, world)
    assert sorted(i for mine in dealt for i in mine) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in mine) for mine in dealt]
    assert max(loads) - min(loads) <= max(lengths)
    assert max(map(len, dealt)) == -(-len(lengths) // world), "the others would have to run as many"


@settings(deadline=None)
@given(SAMPLES, st.integers(1, 8))
def test_rows_of_a_step_need_as_few_passes_as_full_rows_do(samples, groups):
    lengths, tiles = [n for n, _ in samples], [t for _, t in samples]
    full = pack(lengths, tiles, 100, 30, len(lengths) or 1)
    rows = pack_step(lengths, tiles, 100, 30, groups=groups, packing="best_fit")
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 100 and sum(tiles[i] for i in row) <= 30 for row in rows)
    assert -(-len(rows) // groups) <= -(-len(full) // groups)
    longest = [max((sum(lengths[i] for i in row) for row in made), default=0) for made in (rows, full)]
    assert longest[0] <= longest[1]


def test_a_limit_beyond_what_a_step_needs_leaves_no_group_without_work():
    """Rows of 16,384 tokens would put 512 short samples into 26 rows, and 6 of 32 GPUs would wait."""
    rng = random.Random(0)
    lengths = [rng.randint(300, 1300) for _ in range(512)]
    assert len(pack(lengths, [1] * 512, 16384, 512)) == 26
    rows = pack_step(lengths, [1] * 512, 16384, 512, groups=32, packing="best_fit")
    loads = [sum(lengths[i] for i in row) for row in rows]
    assert len(rows) == 32 and max(loads) < 1.02 * sum(lengths) / 32


def test_the_published_buffer_and_single_rows_do_not_depend_on_the_groups():
    lengths, tiles = [5, 3, 6, 2], [1, 1, 1, 1]
    assert pack_step(lengths, tiles, 8, 4, groups=3, packing="greedy") == pack_greedy(lengths, tiles, 8, 4)
    assert pack_step(lengths, tiles, 8, 4, groups=3, packing="none") == [[0], [1], [2], [3]]
