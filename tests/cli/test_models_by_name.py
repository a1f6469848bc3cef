"""A model is found by each of its names; nothing is guessed, and each fix line is one that works."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.command_line import parse
from vlm.cli.commands.doctor import default_model
from vlm.cli.commands.list import What, _models
from vlm.cli.commands.use import use
from vlm.cli.find import find_entries, find_model, find_ruler
from vlm.cli.local_models import CHOICE, chosen_model
from vlm.cli.options import EntryChoice, LongSetOptions
from vlm.core.errors import CheckpointError, ConfigError, UnknownName, VlmError
from vlm.core.fetch.catalogue import find_entry, load_catalogue


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoint(folder: Path, model_type: str = "vlm") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def world(home: Path) -> dict[str, Path]:
    """Released checkpoints where the catalogue puts them, and three runs."""
    found = {
        "InternVL2-2B": checkpoint(home / "pretrained/InternVL2-2B", "internvl_chat"),
        "V2PE-32K": checkpoint(home / "pretrained/V2PE/V2PE-32K", "internvl_chat"),
        "V2PE-256K": checkpoint(home / "pretrained/V2PE/V2PE-256K", "internvl_chat"),
        "a-sft": checkpoint(home / "runs/a/train/a-sft/model"),
        "b-pretrain": checkpoint(home / "runs/b/train/b-pretrain/model"),
        "b-sft": checkpoint(home / "runs/b/train/b-sft/model"),
        "own": checkpoint(home / "runs/v2pe/train/v2pe-32k/model"),
    }
    checkpoint(home / "pretrained/vicuna-7b-v1.5", "llama")
    checkpoint(home / "pretrained/InternVL2-2B/vision_tower", "clip")
    checkpoint(home / "runs/a/train/a-sft/checkpoints/step-9")
    checkpoint(home / "runs/a/eval/results")
    return found


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("InternVL2-2B", "InternVL2-2B"),
        ("internvl2-2b", "InternVL2-2B"),
        ("OpenGVLab/InternVL2-2B", "InternVL2-2B"),
        ("pretrained/InternVL2-2B", "InternVL2-2B"),
        ("V2PE-32K", "V2PE-32K"),
        ("V2PE/V2PE-256K", "V2PE-256K"),
        ("OpenGVLab/V2PE/V2PE-32K", "V2PE-32K"),
        ("v2pe-32k", "own"),
        ("a", "a-sft"),
        ("a-sft", "a-sft"),
        ("A-SFT", "a-sft"),
        ("a/a-sft", "a-sft"),
        ("runs/a", "a-sft"),
        ("runs/a/train/a-sft", "a-sft"),
        ("runs/a/train/a-sft/model", "a-sft"),
        ("./runs/b/train/b-sft/", "b-sft"),
        ("b-pretrain", "b-pretrain"),
    ],
)
def test_each_name_finds_its_model(name: str, which: str, world: dict[str, Path]) -> None:
    assert find_model(name).resolve() == world[which]


def test_an_absolute_folder_outside_of_the_home_is_taken_as_it_is(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = checkpoint(tmp_path_factory.mktemp("elsewhere") / "mine")
    assert find_model(str(folder)) == folder
    assert find_model(str(folder.parent / "mine/")) == folder


def test_a_run_of_several_models_lists_them_with_names_that_work(world: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="b names 2 models") as error:
        find_model("b")
    listed = re.findall(r"--model (\S+?)(?:,|$)", str(error.value), re.MULTILINE)
    assert [find_model(name) for name in listed] == [world["b-pretrain"], world["b-sft"]]


def test_a_stage_of_two_runs_is_not_guessed(home: Path) -> None:
    first, second = (checkpoint(home / "runs" / run / "train/sft/model") for run in "ab")
    with pytest.raises(ConfigError, match="sft names 2 models"):
        find_model("sft")
    assert (find_model("a/sft"), find_model("b/sft")) == (first, second)


def test_a_released_model_that_is_not_here_has_the_line_that_brings_it(home: Path) -> None:
    checkpoint(home / "runs/v2pe/train/v2pe-32k/model")
    for name, entry in (("V2PE-32K", "V2PE"), ("InternVL2-2B", "InternVL2-2B"), ("OpenGVLab/V2PE/V2PE-32K", "V2PE")):
        with pytest.raises(CheckpointError, match=f"fix: vlm download {entry}$") as error:
            find_model(name)
        assert error.value.fix is not None
        parse(error.value.fix.split()[1:])
        assert find_entry(entry, load_catalogue()).automatic


def test_what_docs_download_by_the_name_of_a_checkpoint_is_known() -> None:
    catalogue = load_catalogue()
    choice = EntryChoice()
    assert [e.name for e in find_entries(catalogue, ["V2PE-32K", "v2pe-256k", "V2PE"], choice)] == ["V2PE"]


@pytest.mark.parametrize(
    ("name", "near"), [("InternVL2-3B", "InternVL2-2B"), ("a-sfd", "a-sft"), ("V2PE-32", "V2PE-32K")]
)
def test_nothing_of_a_name_gives_the_nearest(name: str, near: str, world: dict[str, Path]) -> None:
    with pytest.raises(UnknownName, match="did you mean") as error:
        find_model(name)
    assert near in str(error.value.expected)


def test_where_the_nearest_must_be_downloaded_the_line_is_shown(home: Path) -> None:
    with pytest.raises(UnknownName, match=r"did you mean InternVL2-2B[\s\S]*fix: vlm download InternVL2-2B$"):
        find_model("InternVL2-3B")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "a\0b", "x" * 5000, "runs", "pretrained", "~", "\x1b[31mred", "a\nb"]
)
def test_odd_names_are_an_error_of_ours(name: str, world: dict[str, Path]) -> None:
    with pytest.raises(VlmError) as error:
        find_model(name)
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 4000


def test_the_only_model_is_meant_where_none_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="no model is here"):
        find_model(None)
    only = checkpoint(home / "pretrained/tiny")
    assert find_model(None) == only
    assert "--model pretrained/tiny (the only model here)" in capsys.readouterr().err


def test_among_several_none_is_meant_and_training_changes_nothing(home: Path, world: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"7 models are here[\s\S]*vlm use MODEL") as error:
        find_model(None)
    listed = re.findall(r"--model (\S+?)(?:,|$)", str(error.value).split("expected:")[1].split("fix:")[0], re.MULTILINE)
    assert {find_model(name) for name in listed} == set(world.values())
    use("a-sft")
    checkpoint(home / "runs/later/train/new/model")
    assert find_model(None) == world["a-sft"]


def test_a_choice_is_kept_shown_and_cleared(
    home: Path, world: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    use("OpenGVLab/InternVL2-2B")
    assert capsys.readouterr().out == "pretrained/InternVL2-2B\n"
    assert json.loads((home / CHOICE).read_text()) == {"model": "pretrained/InternVL2-2B"}
    assert [row["folder"] for row in _models(What.models) if row["default"]] == ["pretrained/InternVL2-2B"]
    assert "InternVL2-2B, chosen by `vlm use`" in default_model()[2]
    use()
    assert capsys.readouterr().out == "pretrained/InternVL2-2B\n"
    with pytest.raises(UnknownName):
        use("InternVL2-3B")
    assert chosen_model() == world["InternVL2-2B"]
    use(clear=True)
    assert chosen_model() is None and not any(row["default"] for row in _models(What.models))
    use(clear=True)
    with pytest.raises(ConfigError, match="nothing is chosen"):
        use()


def test_a_model_outside_of_the_home_can_be_chosen(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = checkpoint(tmp_path_factory.mktemp("elsewhere") / "mine")
    use(str(folder))
    assert find_model(None) == folder
    assert {row["folder"]: row["default"] for row in _models(What.models)} == {str(folder): "yes"}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": 3}', '{"model": "runs/gone"}', "\0"])
def test_a_damaged_or_stale_choice_is_an_error_whose_fix_works(home: Path, content: str) -> None:
    checkpoint(home / "pretrained/tiny")
    (home / CHOICE).write_text(content)
    with pytest.raises(ConfigError) as error:
        find_model(None)
    assert error.value.fix == "vlm use --clear"
    assert default_model()[1] is False
    use(clear=True)
    assert find_model(None) == home / "pretrained/tiny"


def test_a_damaged_config_does_not_hide_the_other_models(home: Path) -> None:
    good, bad = checkpoint(home / "pretrained/good"), checkpoint(home / "pretrained/bad")
    (bad / "config.json").write_bytes(b"\xff{")
    assert find_model("good") == good
    assert len(_models(What.models)) == 2


def test_a_preset_still_counts_for_a_builder_and_a_typing_error_names_the_nearest() -> None:
    options = {"out": "x", "tokens": ["4K"]}
    with pytest.raises(ConfigError, match="tiny-internvl2 has no tokenizer"):
        find_ruler(LongSetOptions(model="tiny-internvl2", **options))  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="unknown model"):
        find_ruler(LongSetOptions(model="no-such-thing", **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [
        ("chat", "-m", "V2PE-32K", "Why?"),
        ("eval", "pope", "--mini", "-m", "V2PE-32K"),
        ("serve", "-m", "V2PE-32K"),
        ("serve", "-m", "x=V2PE-32K"),
        ("weights", "inspect", "V2PE-32K"),
        ("weights", "convert", "V2PE-32K", "--to", "vlm", "-o", "out"),
        ("weights", "diff", "V2PE-32K", "V2PE-32K"),
        ("data", "check", "x.jsonl", "--model", "V2PE-32K"),
        ("data", "build", "long-mr", "--out", "x", "--model", "V2PE-32K", "--tokens", "4K"),
        ("use", "V2PE-32K"),
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_every_verb_finds_models_in_the_same_way(words: tuple[str, ...], home: Path) -> None:
    line = [sys.executable, "-m", "vlm.cli.main", *words]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, timeout=120)
    assert done.returncode == 5 and "fix: vlm download V2PE" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
