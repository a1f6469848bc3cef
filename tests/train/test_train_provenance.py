"""A run folder never lies: recipe.json says how the steps in it were taken, and is written only when a step follows."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from vlm.cli.main import app
from vlm.core.errors import CheckpointError, ConfigError, DataError
from vlm.train.plan.run_plan import RunPlan
from vlm.train.run import checkpoint
from vlm.train.run.loop import train
from vlm.train.run.metrics import read_account

SHORT = ("steps=6", "save_every=2")


def note(out):
    return json.loads((out / "recipe.json").read_text())


def steps(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def contents(out):
    return {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_home, recipe_file):
    """A finished stage of six steps with checkpoints of steps 2 and 4, to be copied."""
    from vlm.train.recipe.recipe import load_recipe

    out = tmp_path_factory.mktemp("done") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_HOME", str(tiny_home))
        train(load_recipe(str(recipe_file), overrides=SHORT), out, quiet=True)
    return out


@pytest.fixture
def out(done, tmp_path):
    return shutil.copytree(done, tmp_path / "tiny")


def test_a_finished_stage_that_is_asked_for_more_is_refused_and_the_fix_goes_on_from_the_last_checkpoint(out, recipe):
    more = recipe("steps=9", "save_every=2", "optimizer.lr=0.001", "seed=5")
    before = contents(out)
    for allow in (False, True):
        with pytest.raises(ConfigError, match=r"finished run of another recipe:(.|\n)*steps: 6 -> 9") as error:
            train(more, out, quiet=True, resume_changed=allow)
        assert f"delete {out}/model and pass --allow-change to go on from step 4 to 9" in error.value.fix
        assert contents(out) == before, "nothing is rewritten"
    old = steps(out)
    shutil.rmtree(out / "model")
    train(more, out, quiet=True, resume_changed=True)
    assert [line["step"] for line in steps(out)] == list(range(9)) and steps(out)[:4] == old[:4]
    now = note(out)
    assert now["recipe"]["steps"] == 9 and now["recipe"]["seed"] == 5
    assert [(part["steps"], part["recipe"]["steps"]) for part in now["earlier"]] == [(4, 6)]
    assert read_account(out).open == []


def test_a_changed_rate_is_the_rate_of_the_steps_that_follow(out, recipe):
    """A checkpoint brings the rates of the run that saved it."""
    shutil.rmtree(out / "model")
    sets = ("save_every=2", "optimizer.schedule=constant", "optimizer.warmup=0")
    train(recipe("steps=6", *sets, "optimizer.lr=0.0005"), out, quiet=True, resume_changed=True)
    assert [line["lr"] for line in steps(out)][4:] == [0.0005, 0.0005]


def test_a_finished_stage_without_a_checkpoint_to_go_on_from_says_so(out, recipe):
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(ConfigError) as error:
        train(recipe("steps=9"), out, quiet=True, resume_changed=True)
    assert error.value.fix == f"use another --run, or delete {out} to train it again"


def test_a_changed_recipe_with_no_step_left_is_refused_and_not_noted(out, recipe):
    shutil.rmtree(out / "model")
    before = contents(out)
    with pytest.raises(ConfigError, match=r"no step is left to train: .* is of step 4, the changed recipe asks for 3"):
        train(recipe("steps=3", "save_every=2"), out, quiet=True, resume_changed=True)
    assert contents(out) == before


def test_a_start_that_fails_before_its_first_step_notes_nothing(recipe, tmp_path, home):
    bad = recipe(*SHORT, data=[{"name": "x", "file": "dataset/tiny/none.jsonl", "root": "dataset/tiny"}])
    with pytest.raises(DataError, match=r"none\.jsonl"):
        train(bad, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out/recipe.json").exists()
    train(recipe("steps=1"), tmp_path / "out", quiet=True)  # with another recipe: nothing was begun


@pytest.fixture
def own_data(home, recipe, tmp_path):
    """A recipe over a copy of the data, and the copy."""
    entry = recipe().data[0]
    copy = tmp_path / "copy.jsonl"
    copy.write_text((home / entry.file).read_text())
    return recipe(*SHORT, data=[{**entry.model_dump(), "file": str(copy)}]), copy


@pytest.mark.parametrize("change", ["one word", "two lines swapped", "one line less"])
def test_data_with_another_content_stops_a_run_that_was_begun(own_data, tmp_path, change):
    asked, file = own_data
    train(asked, tmp_path / "out", quiet=True)
    shutil.rmtree(tmp_path / "out/model")
    train(asked, tmp_path / "out", quiet=True)  # the same: it goes on
    shutil.rmtree(tmp_path / "out/model")
    lines = file.read_text().splitlines(keepends=True)
    if change == "one word":
        lines[3] = lines[3].replace("grey", "gray")
    elif change == "two lines swapped":
        lines[0], lines[1] = lines[1], lines[0]
    else:
        lines.pop()
    file.write_text("".join(lines))
    said = "24 -> 23 records" if change == "one line less" else "24 records as before, with another content"
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match=rf"copy\.jsonl: {said}"):
        train(asked, tmp_path / "out", quiet=True)
    assert contents(tmp_path / "out") == before
    assert (train(asked, tmp_path / "out", quiet=True, resume_changed=True) / "config.json").exists()
    assert [part["steps"] for part in note(tmp_path / "out")["earlier"]] == [4]


def test_a_folder_of_an_earlier_version_still_compares_the_number_of_records(own_data, tmp_path):
    asked, file = own_data
    train(asked, tmp_path / "out", quiet=True)
    shutil.rmtree(tmp_path / "out/model")
    old = {k: v for k, v in note(tmp_path / "out").items() if k in ("digest", "start", "lines", "recipe")}
    (tmp_path / "out/recipe.json").write_text(json.dumps(old))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"24 -> 23"):
        train(asked, tmp_path / "out", quiet=True)


def test_threads_and_processes_are_noted_and_a_change_of_them_is_said(out, recipe, monkeypatch, capfd):
    assert (note(out)["threads"], note(out)["processes"]) == (1, 1)
    shutil.rmtree(out / "model")
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    train(recipe(*SHORT), out, quiet=True)
    assert "1 threads before, 3 now: the results are equal to rounding, not to the last bit" in capfd.readouterr().err
    assert note(out)["threads"] == 3 and [(p["steps"], p["threads"]) for p in note(out)["earlier"]] == [(4, 1)]
    assert read_account(out).open == []


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"\0" * 300, b"[1]", b'{"digest": 1}', None], ids=repr)
def test_a_damaged_recipe_file_is_taken_from_the_checkpoint_and_the_run_goes_on(out, recipe, capfd, curve, damage):
    shutil.rmtree(out / "model")
    whole, told = curve(out), note(out)
    if damage is None:
        (out / "recipe.json").unlink()
    else:
        (out / "recipe.json").write_bytes(damage)
    with pytest.raises(ConfigError, match="another recipe"):
        train(recipe(*SHORT, "seed=9"), out, quiet=True)
    (out / "recipe.json").write_bytes(damage or b"")
    train(recipe(*SHORT), out, quiet=True)
    said = capfd.readouterr().err
    assert "recipe.json is" in said and "taken from" in said and "step-00000004" in said
    assert curve(out) == whole and note(out) == told


def test_a_damaged_recipe_file_of_which_no_checkpoint_has_a_copy_is_an_error_whose_fix_works(out, recipe):
    shutil.rmtree(out / "model")
    for path in checkpoint.complete(out / "checkpoints"):
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "run"}))
    (out / "recipe.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"recipe\.json is missing or damaged") as error:
        train(recipe(*SHORT), out, quiet=True)
    assert "--allow-change" in error.value.fix
    train(recipe(*SHORT), out, quiet=True, resume_changed=True)
    assert note(out)["recipe"]["steps"] == 6 and [p["steps"] for p in note(out)["earlier"]] == [4]


def test_a_damaged_recipe_file_where_nothing_was_saved_starts_again(recipe, tmp_path, capfd):
    (tmp_path / "recipe.json").write_text("")
    train(recipe("steps=1"), tmp_path, quiet=True)
    assert "the run starts again" in capfd.readouterr().err and note(tmp_path)["recipe"]["steps"] == 1


def test_samples_that_do_not_fill_the_last_step_are_named_everywhere(recipe, recipe_file, tmp_path):
    """24 records at 18 a step are one step, and six records that no step takes."""
    asked = recipe("steps=null", "epochs=1", "batch.samples=18", "strides=null")
    plan = RunPlan.resolve(asked)
    assert (plan.steps, plan.unseen, plan.as_dict()["unseen"]) == (1, 6, 6)
    train(asked, tmp_path, quiet=True)
    lost = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(e["what"], e["stage"], e["step"]) for e in lost] == [("unseen", "plan", 1)] * 6
    assert len({e["id"] for e in lost}) == 6
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["unseen"] == 6 and summary["ledger"]["in"] == 18
    account = read_account(tmp_path)
    assert account.steps == 1 and account.open == [] and list(account.reasons.values()) == [6]
    from vlm.train.run.stream import Stream

    names = {e["id"] for e in lost}
    stream = Stream(asked, None)
    seen = {stream.name(number, line) for _, number, line in stream.picks(0)}
    assert len(seen) == 18 and not seen & names and len(seen | names) == 24
    sets = ("--set", "steps=null", "--set", "epochs=1", "--set", "batch.samples=18")
    shown = CliRunner().invoke(app, ["plan", str(recipe_file), *sets])
    assert "6 of 24 samples" in " ".join(shown.output.split()), shown.output


def test_a_stage_that_goes_on_has_no_summary_of_its_earlier_end(out, recipe, monkeypatch):
    shutil.rmtree(out / "model")
    monkeypatch.setattr("vlm.train.run.loop.export", lambda *_: (_ for _ in ()).throw(DataError("stopped")))
    with pytest.raises(DataError, match="stopped"):
        train(recipe(*SHORT), out, quiet=True)
    assert not (out / "summary.json").exists() and read_account(out).open == []


@pytest.mark.parametrize("epochs,size,expected", [(1, 6, 0), (2, 7, 6), (1, 48, 0), (0.5, 5, 2), (1, 1, 0)])
def test_unseen_is_what_is_left_of_the_epochs(recipe, epochs, size, expected):
    asked = recipe("steps=null", f"epochs={epochs}", f"batch.samples={size}", "batch.max_tokens=512")
    assert asked.unseen(24) == expected
    assert recipe("steps=1", f"batch.samples={size}").unseen(24) == 0
