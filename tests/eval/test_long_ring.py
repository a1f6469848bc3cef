"""One teacher-forced sample over one, two and four processes: the same predictions and logits, less memory in each."""

import pytest

from support.long_ring import difference, measure


def check_same(rows: list[dict]) -> None:
    one, *rings = rows
    assert len(one["predicted"]) > 5 and len(set(one["predicted"])) > 1
    for ring in rings:
        assert ring["predicted"] == one["predicted"]
        assert difference(one, ring) < 2e-5


@pytest.mark.timeout(600)
def test_a_ring_predicts_what_one_process_does() -> None:
    check_same(measure(8192, [1, 2, 4]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_memory_of_a_process_is_in_proportion_to_the_tokens_that_it_holds() -> None:
    """`python tests/support/long_ring.py --tokens 1048576` measures a million."""
    short, long = measure(32_768, [1, 2, 4]), measure(131_072, [1, 2, 4])
    check_same(short)
    check_same(long)
    more = [max(b["bytes"]) - max(a["bytes"]) for a, b in zip(short, long, strict=True)]
    # a process also holds the ids and positions of the whole sample; code pages of a first use are in both lengths
    assert 1.3 < more[1] / more[2] < 2.2 and more[0] / more[1] > 1.3
