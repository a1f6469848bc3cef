"""Sharding: every item exactly once, balanced, a pure function of the costs; batches: no waste, neighbors kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.eval.run.shards import assign, batches, makespan

COSTS = st.lists(st.integers(1, 80_000), min_size=1, max_size=80)


@settings(deadline=None)  # a busy machine must not decide
@given(COSTS, st.integers(1, 12))
def test_every_item_is_in_exactly_one_shard(costs, n):
    shards = assign(costs, n)
    assert len(shards) == n
    assert sorted(i for shard in shards for i in shard) == list(range(len(costs)))


@settings(deadline=None)  # a busy machine must not decide
@given(COSTS, st.integers(1, 12))
def test_no_shard_exceeds_the_ideal_by_more_than_its_last_item(costs, n):
    loads = [sum(costs[i] for i in shard) for shard in assign(costs, n)]
    assert max(loads) <= sum(costs) / n + max(costs)


def test_long_samples_with_quadratic_cost_are_balanced_within_a_percent():
    costs = [float((512 + 160 * i) ** 2) for i in range(500)]
    contiguous = [list(range(k * 500 // 8, (k + 1) * 500 // 8)) for k in range(8)]
    assert makespan(costs, assign(costs, 8)) <= 1.01
    assert makespan(costs, contiguous) > 2


def test_equal_costs_are_assigned_in_a_fixed_order():
    assert assign([1, 1, 1, 1], 2) == [[0, 2], [1, 3]]


def test_no_shards_are_refused():
    with pytest.raises(ValueError, match="0 shards"):
        assign([1], 0)


@settings(deadline=None)  # a busy machine must not decide
@given(COSTS, st.integers(1, 9))
def test_batches_hold_every_item_once_and_are_never_larger_than_asked(costs, size):
    result = batches(costs, list(range(len(costs))), size)
    assert sorted(i for batch in result for i in batch) == list(range(len(costs)))
    assert max(map(len, result)) <= size


@settings(deadline=None)  # a busy machine must not decide
@given(COSTS, st.integers(1, 9))
def test_padding_never_wastes_more_than_half_of_a_batch_row(costs, size):
    for batch in batches(costs, list(range(len(costs))), size):
        assert min(costs[i] for i in batch) >= 0.5 * max(costs[i] for i in batch)


def test_the_dearest_batch_comes_first_and_shared_media_stay_together():
    costs = [10, 99, 11, 98, 12, 97]
    shared = ["a", "b", "a", "b", "a", "b"]
    assert batches(costs, shared, 3) == [[1, 3, 5], [4, 2, 0]]
