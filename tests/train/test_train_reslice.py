"""ZeRO-1 to 3 resumed on another number of processes: the same samples and losses as without the change."""

import json
import math
import shutil
from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from vlm.core.errors import CheckpointError
from vlm.train.run import checkpoint, reslice
from vlm.train.run.loop import train

LORA = json.dumps({"rank": 2, "alpha": 4, "targets": ["language_model.*.q_proj", "encoder.*.attn.qkv"]})
KEYS = ("step", "lr", "samples", "rows", "labels", "useful_tokens")


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def rewind(out, step):
    """As a kill leaves a run whose last checkpoint is of `step`."""
    shutil.rmtree(out / "model")
    for path in checkpoint.complete(out / "checkpoints"):
        if path.name > checkpoint.name(step):
            shutil.rmtree(path)


@pytest.fixture
def chain(trained):
    """`chain(2, 4, 1)`: two steps by 2 processes, two by 4, the rest by 1; its folder, and what 2 alone had written."""

    def chain(*counts, sets=()):
        sets = (f"steps={2 * len(counts)}", "save_every=2", "keep=9", *sets)
        out = trained(counts[0], "run", *sets)
        undisturbed = shutil.copytree(out, out.with_name("undisturbed"))
        for leg, (before, now) in enumerate(pairwise(counts), 1):
            rewind(out, 2 * leg)
            manifest = out / "checkpoints" / checkpoint.name(2 * leg) / checkpoint.MANIFEST
            assert json.loads(manifest.read_text())["state"]["processes"] == before
            assert trained(now, "run", *sets) == out
        return out, undisturbed

    return chain


def same_run(out, undisturbed, loss=1e-5, norm=1e-3, weight=2e-4):
    """The same samples; losses and gradient norms within relative, weights within absolute tolerances."""
    got, expected = lines(out), lines(undisturbed)
    assert [{k: line[k] for k in KEYS} for line in got] == [{k: line[k] for k in KEYS} for line in expected]
    assert [line["loss"] for line in got] == pytest.approx([line["loss"] for line in expected], rel=loss)
    assert [line["grad_norm"] for line in got] == pytest.approx([line["grad_norm"] for line in expected], rel=norm)
    model, wanted = (load_file(folder / "model/model.safetensors") for folder in (out, undisturbed))
    assert model.keys() == wanted.keys()
    for name, tensor in model.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=weight, msg=lambda m, n=name: f"{n}: {m}")


RATES = 'optimizer.groups={"encoder.*": 0.001}'  # with the weight decay of some, four groups


@pytest.mark.parametrize("stage,counts", [(1, (2, 1)), (2, (1, 2)), (3, (2, 1, 2))])
def test_another_number_of_processes_continues_with_the_same_losses(chain, stage, counts):
    same_run(*chain(*counts, sets=(f"zero.stage={stage}", RATES)))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_four_processes_continue_as_two_and_two_for_four(chain, stage):
    same_run(*chain(2, 4, 2, 1, sets=(f"zero.stage={stage}", RATES)))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    "sets",
    [("trainable=[projector.*,language_model.*]",), ("trainable=[projector.*]", f"lora={LORA}")],
    ids=["frozen", "lora"],
)
def test_frozen_parts_and_adapters_continue_too(chain, stage, sets):
    same_run(*chain(1, 2, 1, sets=(f"zero.stage={stage}", *sets)))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_continue_too(chain, stage):
    out, undisturbed = chain(2, 4, 1, sets=(f"zero.stage={stage}", "precision=bfloat16"))
    same_run(out, undisturbed, loss=1e-2, norm=1e-1, weight=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_sequence_groups_continue_with_more_and_fewer_of_them(chain, stage):
    same_run(*chain(2, 4, 2, sets=(f"zero.stage={stage}", "sequence_parallel.size=2", "batch.packing=none")))


def test_the_repartition_is_reported(trained, recipe, capfd):
    out = trained(2, "run", "steps=3", "save_every=2", "zero.stage=2")
    rewind(out, 2)
    train(recipe("steps=3", "save_every=2", "zero.stage=2"), out, quiet=True)
    assert "step-00000002 was saved by 2 processes: its slices are repartitioned for 1" in capfd.readouterr().err


@pytest.mark.parametrize("stage,other", [(2, 3), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_what_was_trained_otherwise_is_refused(trained, recipe, stage, other):
    sets = ("steps=3", "save_every=2", f"zero.stage={stage}")
    out = trained(2, "run", *sets)
    rewind(out, 2)
    for changed in ("trainable=[projector.*]", "optimizer.weight_decay=0"):
        with pytest.raises(CheckpointError, match="other parameters were trained, or in other groups"):
            train(recipe(*sets, changed), out, quiet=True, resume_changed=True)
    with pytest.raises(CheckpointError, match="not in 2 slices of the recipe's ZeRO stage"):
        train(recipe(*sets, f"zero.stage={other}"), out, quiet=True, resume_changed=True)


sizes = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=3)
processes = st.integers(1, 9)


def parameters(sizes):
    """Groups of named vectors, no two numbers alike."""
    numbers = iter(range(1, 10**6))
    return [
        OrderedDict((f"{i}.{j}", torch.tensor([next(numbers) for _ in range(n)])) for j, n in enumerate(group))
        for i, group in enumerate(sizes)
    ]


def shapes(groups):
    return [OrderedDict((name, vector.shape) for name, vector in group.items()) for group in groups]


def parts(vector, count, each):
    """`count` slices of `each`, zeros behind the end."""
    return torch.cat([vector, vector.new_zeros(count * each - len(vector))]).split(each)


@given(sizes, processes, processes, st.integers(1, 8))
def test_repartitioned_slices_are_those_of_the_whole_groups(sizes, writers, readers, alignment):
    groups = parameters(sizes)

    def slices(count, lean):
        written = [{} for _ in range(count)]
        for i, group in enumerate(groups):
            whole = torch.cat([*group.values()])
            each = alignment * math.ceil(len(whole) / (alignment * count))
            for rank, part in enumerate(parts(whole, count, each)):
                written[rank][i] = part[: max(0, len(whole) - rank * each)] if lean else part
        return written

    expected = slices(readers, lean=False)
    for lean in (True, False):  # float32 weights are saved without the padding, moments with it
        before = slices(writers, lean)
        for i, (vector,) in enumerate(reslice.by_group(shapes(groups), slices(writers, lean=True))):
            for rank in range(readers):
                assert torch.equal(vector.cut(before, rank, len(expected[rank][i])), expected[rank][i])


@given(sizes, processes, processes, st.randoms())
def test_cuts_of_parameters_go_by_name_into_the_groups_of_now(sizes, writers, readers, chance):
    groups = parameters(sizes)
    everything = [pair for group in groups for pair in group.items()]
    chance.shuffle(everything)
    border = chance.randint(0, len(everything))
    now = [OrderedDict(everything[:border]), OrderedDict(everything[border:])]

    def slices(groups, count):
        cuts = [[parts(v, count, math.ceil(len(v) / count)) for v in group.values()] for group in groups]
        return [
            {i: torch.cat([c[rank] for c in group]) for i, group in enumerate(cuts) if group} for rank in range(count)
        ]

    before, expected = slices(groups, writers), slices(now, readers)
    vectors = reslice.by_parameter(shapes(groups), shapes(now), writers)
    for rank in range(readers):
        for i, group in enumerate(vectors):
            made = [v.cut(before, rank, math.ceil(v.numel / readers)) for v in group]
            assert not group or torch.equal(torch.cat(made), expected[rank][i])
