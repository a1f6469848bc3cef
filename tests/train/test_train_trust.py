"""A checkpoint that asks for code to be run is refused by name when a run resumes, and nothing of it runs."""

import json
import os
import pickle
import shutil

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from vlm.core.errors import CheckpointError
from vlm.train.run import checkpoint
from vlm.train.run.engine import load_saved
from vlm.train.run.loop import train


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def poison(tmp_path):
    """Put code into the file of the newest checkpoint that matches, and the new digest into the manifest."""
    mark = tmp_path / "ran"

    def poison(out, pattern):
        shutil.rmtree(out / "model", ignore_errors=True)
        folder = checkpoint.complete(out / "checkpoints")[-1]
        (file,) = folder.glob(pattern)
        state = torch.load(file, weights_only=False)
        torch.save({**state, "evil": Evil(mark)}, file)
        manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
        manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": checkpoint.file_digest(file)}
        (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
        assert checkpoint.damage(folder) is None
        return file.name, mark

    return poison


def test_the_poison_works_on_a_loader_that_trusts(tmp_path):
    torch.save({"evil": Evil(tmp_path / "ran")}, tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("stage,pattern", [(0, "*model_states.pt"), (2, "*optim_states.pt"), (3, "*model_states.pt")])
def test_resuming_runs_nothing_and_names_the_file(tmp_path, recipe, poison, stage, pattern):
    sets = ("steps=2", "save_every=1", f"zero.stage={stage}")
    out = tmp_path / "out"
    train(recipe(*sets), out, quiet=True)
    name, mark = poison(out, pattern)
    with pytest.raises(CheckpointError, match=rf"{name} is refused, nothing in it was run"):
        train(recipe(*sets), out, quiet=True)
    assert not mark.exists() and not (out / "model").exists()


@pytest.mark.parametrize("pattern", ["zero_pp_rank_0_*optim_states.pt", "*model_states.pt"])
def test_repartitioning_runs_nothing_and_names_the_file(trained, recipe, poison, pattern):
    sets = ("steps=3", "save_every=2", "zero.stage=2")
    out = trained(2, "run", *sets)
    name, mark = poison(out, pattern)
    with pytest.raises(CheckpointError, match=rf"{name} is refused, nothing in it was run"):
        train(recipe(*sets), out, quiet=True)
    assert not mark.exists() and not (out / "model").exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x02garbage\xff", b"PK\x03\x04", b"\x80\x02."], ids=repr)
def test_a_file_that_is_none_is_named(tmp_path, data):
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        load_saved(tmp_path / "x.pt")


def test_the_allowed_classes_are_not_left_allowed_for_others(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({"a": ZeroStageEnum.weights}, file)
    assert load_saved(file) == {"a": ZeroStageEnum.weights}
    with pytest.raises(pickle.UnpicklingError, match="ZeroStageEnum"):
        torch.load(file, weights_only=True)
