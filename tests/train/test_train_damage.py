"""Damaged state that still parses: the checkpoint before it is used, and what is damaged is named."""

import json
import shutil

import pytest
import torch

from vlm.core.errors import CheckpointError, DataError
from vlm.train.run import checkpoint
from vlm.train.run.loop import train
from vlm.train.run.metrics import Log, read_account

SHORT = ("steps=6", "save_every=2", "keep=2")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, tiny_home, recipe_file):
    """A stage without its model, checkpoints of steps 2 and 4, metrics of steps 0 to 4, samples lost in each."""
    from vlm.train.recipe.recipe import load_recipe

    out = tmp_path_factory.mktemp("stopped") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_HOME", str(tiny_home))
        train(load_recipe(str(recipe_file), overrides=(*SHORT, "max_length=150", "max_lost=1")), out, quiet=True)
    shutil.rmtree(out / "model")
    return out


@pytest.fixture
def out(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "tiny")


@pytest.fixture
def go_on(recipe, out):
    return lambda **kw: train(recipe(*SHORT, "max_length=150", "max_lost=1"), out, quiet=True, **kw)


def manifest_of(out, step=4):
    return out / f"checkpoints/step-{step:08d}/manifest.json"


def edited(change):
    def edit(text):
        value = json.loads(text)
        change(value)
        return json.dumps(value)

    return edit


MANIFESTS = {
    "empty object": lambda text: "{}",
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "null": lambda text: "null",
    "NUL bytes": lambda text: "\0" * len(text),
    "cut": lambda text: text[: len(text) // 2],
    "no files": edited(lambda m: m.update(files={})),
    "files as a list": edited(lambda m: m.update(files=list(m["files"]))),
    "facts without a size": edited(lambda m: m.update(files={key: {} for key in m["files"]})),
    "no state": edited(lambda m: m.pop("state")),
    "another step": edited(lambda m: m["state"].update(step=5)),
    "a step in words": edited(lambda m: m["state"].update(step="four")),
    "zero processes": edited(lambda m: m["state"].update(processes=0)),
    "a file outside": edited(lambda m: m["files"].update({"../../recipe.json": {"bytes": 1, "sha256": "x"}})),
    "a file at a fixed place": edited(lambda m: m["files"].update({"/etc/hostname": {"bytes": 1, "sha256": "x"}})),
}


@pytest.mark.parametrize("damage", MANIFESTS.values(), ids=MANIFESTS)
def test_a_damaged_manifest_is_named_and_the_checkpoint_before_it_used(out, go_on, curve, damage):
    whole, file = curve(out), manifest_of(out)
    file.write_text(damage(file.read_text()))
    with pytest.warns(RuntimeWarning, match="step-00000004.*going back to the checkpoint before it"):
        go_on()
    assert curve(out) == whole and (out / "model/config.json").exists()
    assert checkpoint.damage(file.parent) is None, "it was saved again"


def test_a_link_in_a_checkpoint_is_no_file_of_its_own(out, go_on, tmp_path):
    (file,) = manifest_of(out).parent.glob("*model_states.pt")
    shutil.move(file, tmp_path / "elsewhere.pt")
    file.symlink_to(tmp_path / "elsewhere.pt")
    with pytest.warns(RuntimeWarning, match=r"step-00000004.*no file of its own"):
        go_on()


def with_line(content):
    def edit(data, number):
        lines = data.split(b"\n")
        lines[number] = content if content is not None else lines[number][: len(lines[number]) // 2]
        return b"\n".join(lines)

    return edit


LINES = {
    "NUL bytes": with_line(b"\0" * 200),
    "cut": with_line(None),
    "another object": with_line(b"{}"),
    "a number": with_line(b"7"),
    "no text": with_line(b"\xff\xfe\x00"),
    "nested": with_line(b"[" * 100_000),
}


@pytest.mark.parametrize("name,number", [("metrics.jsonl", 2), ("ledger.jsonl", 10)])
@pytest.mark.parametrize("damage", LINES.values(), ids=LINES)
def test_a_damaged_line_of_a_log_is_written_again_from_the_checkpoint_before_it(
    out, go_on, curve, name, number, damage
):
    whole, file = curve(out), out / name
    lost = file.read_bytes()
    assert json.loads(lost.split(b"\n")[number])["step"] == 2, "a line between the two checkpoints"
    file.write_bytes(damage(lost, number))
    with pytest.warns(RuntimeWarning, match=rf"step-00000004: {name} has only .* going back"):
        go_on()
    assert curve(out) == whole
    if name == "ledger.jsonl":
        assert file.read_bytes() == lost
    assert read_account(out).open == []


def test_a_log_that_ends_early_is_written_again_too(out, go_on, curve):
    whole, file = curve(out), out / "metrics.jsonl"
    file.write_bytes(b"\n".join(file.read_bytes().split(b"\n")[:2]) + b'\n{"step": 2, "lo')
    with pytest.warns(RuntimeWarning, match=r"step-00000004: metrics\.jsonl has only 2 of its 4 lines before step 4"):
        go_on()
    assert curve(out) == whole


def test_where_no_checkpoint_is_before_the_damage_no_step_is_lost_and_the_account_says_it(out, go_on):
    (out / "metrics.jsonl").write_bytes(with_line(b"\0" * 50)((out / "metrics.jsonl").read_bytes(), 0))
    with pytest.warns(
        RuntimeWarning, match=r"step-00000004 is used, because there is none before it.*report will lack"
    ):
        go_on()
    assert [line["step"] for line in Log(out / "metrics.jsonl").read()] == [1, 2, 3, 4]
    assert read_account(out).open, "the lost line is not passed over"


def test_a_checkpoint_that_could_not_be_used_is_not_counted_as_kept(out, recipe):
    """With keep=1, the new checkpoint of step 3 was deleted, and the damaged one of step 4 kept."""
    manifest_of(out).write_text("{}")
    sets = ("steps=4", "save_every=1", "keep=1", "max_length=150", "max_lost=1")
    with pytest.warns(RuntimeWarning):
        train(recipe(*sets), out, quiet=True, resume_changed=True)
    assert [p.name for p in checkpoint.complete(out / "checkpoints")] == ["step-00000003"]


@pytest.mark.parametrize("what", ["counts", "entries"])
def test_damaged_state_is_no_traceback_of_the_account(out, what):
    if what == "counts":
        (out / "summary.json").write_text("[]")
        assert read_account(out).open
    else:
        (out / "recipe.json").write_text("{}")
        with pytest.raises(DataError, match="damaged"):
            read_account(out)


def rewritten(folder, pattern, change):
    """Change what a `.pt` holds, and the manifest with it."""
    (file,) = folder.glob(pattern)
    state = change(torch.load(file, weights_only=False))
    torch.save(state, file)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": checkpoint.file_digest(file)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.damage(folder) is None


def without_weight(state):
    module = dict(state["module"])
    module.pop("projector.1.weight")
    return {**state, "module": module}


WRONG = {
    "nothing": (0, "*model_states.pt", lambda s: {}),
    "a tensor": (0, "*model_states.pt", lambda s: torch.ones(3)),
    "no weights": (0, "*model_states.pt", lambda s: {**s, "module": {}}),
    "one weight less": (0, "*model_states.pt", without_weight),
    "weights of another shape": (
        0,
        "*model_states.pt",
        lambda s: {**s, "module": {n: torch.zeros(2, 3) for n in s["module"]}},
    ),
    "no optimizer": (0, "*model_states.pt", lambda s: {**s, "optimizer": {}}),
    "another step": (0, "*model_states.pt", lambda s: {**s, "step": 77}),
    "no step": (0, "*model_states.pt", lambda s: {k: v for k, v in s.items() if k != "step"}),
    "no slices": (2, "*optim_states.pt", lambda s: {}),
    "slices of nothing": (2, "*optim_states.pt", lambda s: {**s, "optimizer_state_dict": {}}),
    "ZeRO-2 without weights": (2, "*model_states.pt", lambda s: {**s, "module": {}}),
    "ZeRO-3 without slices": (3, "*optim_states.pt", lambda s: {**s, "optimizer_state_dict": {}}),
    "ZeRO-3 of other parameters": (3, "*model_states.pt", lambda s: {**s, "param_shapes": s["param_shapes"][:1]}),
}


@pytest.mark.parametrize("stage,pattern,change", WRONG.values(), ids=WRONG)
def test_a_well_formed_file_with_the_wrong_content_is_our_error_and_its_fix_works(
    recipe, tmp_path, stage, pattern, change
):
    sets = ("steps=3", "save_every=1", f"zero.stage={stage}")
    out = tmp_path / "out"
    train(recipe(*sets), out, quiet=True)
    shutil.rmtree(out / "model")
    newest = checkpoint.complete(out / "checkpoints")[-1]
    rewritten(newest, pattern, change)
    with pytest.raises(CheckpointError, match="step-00000002") as error:
        train(recipe(*sets), out, quiet=True)
    assert error.value.fix and not (out / "model").exists()
    shutil.rmtree(newest)
    assert (train(recipe(*sets), out, quiet=True) / "config.json").exists()
