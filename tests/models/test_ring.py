"""Rows that several processes hold equal the dense model: real gloo processes, float64, and faults that must show."""

import multiprocessing
import os
import runpy
import socket
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.models.attention.ulysses import key_copies
from vlm.models.sequence.sharding import LAYOUTS, owners, schedule, zigzag
from vlm.models.sequence_parallel import spread

WORKER = Path(__file__).with_name("ring_worker.py")
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}


@pytest.fixture(scope="module")
def fork_server():
    """Children with torch and DeepSpeed already imported."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vlm.models.sequence_parallel"])
    return context


@pytest.fixture(scope="module", params=[2, 4])
def found(request, fork_server, tmp_path_factory):
    """{case: largest difference from the dense model} of a world of 2 and one of 4 processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    file = tmp_path_factory.mktemp("ring") / "found.pt"
    given = {"SIZE": request.param, "PORT": port, "FILE": file}
    children = [
        fork_server.Process(target=runpy.run_path, args=(str(WORKER), {"RANK": r, **given}, "worker"), daemon=True)
        for r in range(request.param)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(270)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    assert codes == [0] * request.param
    return torch.load(file)


def test_ring_and_ulysses_equal_the_dense_model_forward_and_backward(found):
    checked = {name: worst for name, worst in found.items() if not name.startswith(("fault", *TOLERANCE))}
    assert len(checked) >= 30
    assert {name: worst for name, worst in checked.items() if not worst < 1e-10} == {}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_lower_precision_stays_at_its_rounding(found, dtype):
    assert 0 < found[f"{dtype} ring attention"] < TOLERANCE[dtype]


def test_the_comparison_sees_the_published_faults(found):
    faults = {name: worst for name, worst in found.items() if name.startswith("fault")}
    four = "ring two groups" in found
    assert faults.keys() == {
        f"fault: {f}" for f in ("whole-row zigzag", "shift after split", *(["wrong group"] if four else []))
    }
    assert min(faults.values()) > 0.01


# layouts and schedule -------------------------------------------------------------------------------------------------

LENGTHS = [[16], [5, 8, 1, 24, 13], [1], [2, 1, 1], [32, 8, 16]]


def packed(lengths) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_token_is_held_once_and_all_hold_equally_many(kind, size, lengths):
    borders = packed(lengths)
    shards = [LAYOUTS[kind](borders, rank, size) for rank in range(size)]
    assert len({len(s.places) for s in shards}) == 1
    held = torch.cat([s.places[s.places >= 0] for s in shards])
    assert held.sort().values.tolist() == list(range(sum(lengths)))
    owner = owners(borders, size, LAYOUTS[kind])
    for rank, shard in enumerate(shards):
        places = shard.places[shard.places >= 0]
        assert (places.diff() > 0).all()
        assert (owner[places] == rank).all()


def test_zigzag_is_per_document_and_pads_each():
    assert zigzag(packed([8, 5]), 0, 2).places.tolist() == [0, 1, 6, 7, 8, 9, -1, -1]
    assert zigzag(packed([8, 5]), 1, 2).places.tolist() == [2, 3, 4, 5, 10, 11, 12, -1]
    assert zigzag(packed([8, 5]), 1, 2).borders.tolist() == [0, 4, 8]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("lengths", [[24], [24, 48]])
def test_the_schedule_computes_each_causal_pair_of_a_document_once(size, lengths):
    borders = packed(lengths)
    shards = [zigzag(borders, rank, size) for rank in range(size)]
    count = torch.zeros(sum(lengths), sum(lengths), dtype=torch.long)
    for rank in range(size):
        for step, blocks in enumerate(schedule(shards[rank].borders.tolist(), rank, size)):
            for b in blocks:
                q, k = shards[rank].places[b.query], shards[(rank - step) % size].places[b.key]
                block = torch.ones(len(q), len(k), dtype=torch.long)
                block = block.tril() if b.causal else block
                assert block.sum() == b.pairs
                count[q[:, None], k] += block
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    assert (count == (document[:, None] == document).long().tril()).all()


def test_every_process_has_the_same_work_at_every_step():
    borders = packed([48, 96])
    for size in (2, 4, 8):
        steps = [schedule(zigzag(borders, r, size).borders.tolist(), r, size) for r in range(size)]
        for step in range(size):
            assert len({sum(b.pairs for b in mine[step]) for mine in steps}) == 1


# bad input ------------------------------------------------------------------------------------------------------------


class FakeGroup:
    """A group of 8 that nothing is sent in."""

    rank, size = 0, 8


def test_ulysses_repeats_key_heads_as_little_as_needed_and_refuses_heads_that_do_not_divide(tiny):
    copies = {(8, 4, 4): 1, (8, 2, 4): 2, (6, 3, 2): 2, (12, 3, 4): 4, (4, 4, 2): 1}
    assert {given: key_copies(*given) for given in copies} == copies
    with pytest.raises(ConfigError, match="8 processes with 4 attention heads"):
        spread(tiny(), FakeGroup(), "ulysses")


def test_an_unknown_kind_is_refused(tiny):
    with pytest.raises(UnknownName, match="did you mean ring"):
        spread(tiny(), FakeGroup(), "rings")


def test_ring_without_a_group_and_padded_batches_are_refused(tiny, prompt):
    model = tiny()
    model.set_attention("ring")
    with pytest.raises(ConfigError, match="sequence_parallel"):
        model(prompt(model, 6), cu_seqlens=packed([6]))
    spread(model, FakeGroup(), "ring")
    with pytest.raises(ConfigError, match="packed row"):
        model(prompt(model, 6))


def test_images_that_do_not_fit_the_ids_are_refused_before_anything_is_sent(tiny, prompt, tiles):
    model = tiny()
    spread(model, FakeGroup(), "ring")
    ids = prompt(model, 3, "image", 2)
    with pytest.raises(DataError, match="4 image placeholders in the ids but 2 tiles"):
        model(ids, pixel_values=tiles(model, 2), cu_seqlens=packed([ids.shape[1]]))
