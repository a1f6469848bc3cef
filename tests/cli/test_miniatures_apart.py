"""A generated miniature never passes for published data: another folder, a mark, refusals where real data count."""

import shutil
from pathlib import Path

import pytest

from vlm.cli import main as command
from vlm.core.errors import ConfigError, DataError
from vlm.core.fetch.catalogue import find_entry, load_catalogue
from vlm.core.fetch.fetch import fetch
from vlm.core.fetch.installed import entry_state
from vlm.core.fetch.miniature import MARKER, WRITTEN, is_miniature, miniature_of
from vlm.core.organize.organize_set import organize
from vlm.eval.mini import make_mini

KEPT = {"whole": (), "without its manifest": (WRITTEN,), "without its marker": (MARKER,)}
"""What a copy of a miniature lacks: `cp -r mini/* .` leaves the hidden manifest behind."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["vlm", *words])
        command.main()
    return int(stop.value.code or 0)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def misplaced(home: Path, lacks: tuple[str, ...]) -> Path:
    """Return `dataset/pope` with a copy of a miniature, as an earlier version wrote it there or a person copied it."""
    made, folder = make_mini("POPE", home / "dataset/mini/POPE", n=2), home / "dataset/pope"
    shutil.copytree(made, folder)
    for name in lacks:
        (folder / name).unlink()
    return folder


def test_a_miniature_is_made_apart_from_published_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "mini", "pope", "--n", "2") == 0
    assert is_miniature(home / "dataset/mini/POPE") and not (home / "dataset/pope").exists()
    capsys.readouterr()
    run("list", "benchmarks")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("POPE ")]
    assert line.split()[1] == "absent"


@pytest.mark.parametrize("place", ["dataset/pope", "dataset/gqa/inside", "dataset", "pretrained/InternVL2-2B", "."])
def test_a_miniature_is_not_made_where_published_data_belong(
    home: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("data", "mini", "pope", "--out", place) == ConfigError.exit_code
    assert "published data" in capsys.readouterr().err and not list(home.iterdir())


def test_a_link_to_a_place_of_published_data_is_seen_through(home: Path) -> None:
    (home / "dataset/pope").mkdir(parents=True)
    (home / "elsewhere").symlink_to(home / "dataset/pope")
    assert run("data", "mini", "pope", "--out", "elsewhere") == ConfigError.exit_code
    assert not list((home / "dataset/pope").iterdir())


@pytest.mark.parametrize("lacks", KEPT.values(), ids=KEPT)
def test_a_misplaced_miniature_is_refused_by_all_that_takes_real_data(
    home: Path, lacks: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = misplaced(home, lacks)
    before, catalogue = content(folder), load_catalogue()
    entry = find_entry("POPE", catalogue)
    assert entry_state(entry) == "miniature"
    for call in (lambda: fetch(entry), lambda: organize("POPE", catalogue=catalogue)):
        with pytest.raises(DataError, match="generated miniature"):
            call()
    capsys.readouterr()
    run("list", "benchmarks")
    assert "POPE  " in (out := capsys.readouterr().out)
    assert [line.split()[1] for line in out.splitlines() if line.startswith("POPE ")] == ["miniature"]
    assert run("download", "POPE", "--dry-run") == 0 and "refused" in capsys.readouterr().out
    for words in (("eval", "pope", "-m", "none"), ("eval", "pope", "-m", "none", "--data", str(folder))):
        assert run(*words) == DataError.exit_code
        assert "--mini" in (said := capsys.readouterr().err) and "holds a miniature" in said
    assert content(folder) == before


def test_a_link_from_the_place_of_real_data_to_a_miniature_is_refused(home: Path) -> None:
    made = make_mini("POPE", home / "dataset/mini/POPE", n=2)
    (home / "dataset/pope").symlink_to(made)
    assert entry_state(find_entry("POPE", load_catalogue())) == "miniature"
    assert run("eval", "pope", "-m", "none") == DataError.exit_code


def test_mini_with_a_folder_takes_the_miniature_there_and_no_real_data(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_mini("POPE", home / "anywhere", n=2)
    assert run("eval", "pope", "-m", "none", "--mini", "--data", str(made)) != DataError.exit_code
    assert "unknown model" in capsys.readouterr().err and not (home / "dataset/mini").exists()
    (home / "real").mkdir()
    assert run("eval", "pope", "-m", "none", "--mini", "--data", "real") == ConfigError.exit_code
    assert "holds no miniature" in capsys.readouterr().err


def test_training_refuses_a_miniature_unless_it_is_said(home: Path) -> None:
    from vlm.train.plan.faults import data_faults
    from vlm.train.recipe.recipe import load_recipe

    def faults(folder: Path, **keys: str) -> list[str]:
        entry = f"[{{name: a, file: {folder}/a.jsonl, root: {folder}}}]"
        said = [f"data={entry}", *(f"{key}={value}" for key, value in keys.items())]
        recipe = load_recipe("quickstart-v2pe-sft", overrides=said)
        rows = [{"name": "a", "records": 1, "repeat": 1.0, "samples": 1, "share": 1.0}]
        return [fault["found"] + fault["fix"] for fault in data_faults(recipe, rows)]  # type: ignore[arg-type]

    made = make_mini("POPE", home / "dataset/mini/POPE", n=2)
    assert miniature_of(made / "val2014") == made
    (found,) = faults(made)
    assert "miniature" in found and "mini=true" in found
    assert faults(made, mini="true") == [] == faults(home / "dataset/real")


def test_training_on_a_file_of_a_miniature_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm.cli import own_data

    made = make_mini("Long-VQA-32k", home / "m", n=1)
    file = next(made.rglob("val_long_vqa_docvqa*.jsonl"))
    (source,) = [own_data._source(str(file), quiet=True)]
    with pytest.raises(DataError, match="miniature") as error:
        own_data._refuse_miniatures([source], ())
    assert "mini=true" in str(error.value.fix)
    own_data._refuse_miniatures([source], ("mini=true",))


def test_a_part_with_true_counts_of_ones_own_is_taken_by_name_alone(home: Path) -> None:
    folder = home / "dataset/pope"
    folder.mkdir(parents=True)
    (folder / MARKER).write_text('{"benchmark": "POPE", "seed": 0, "counts": {"adversarial": 1}}')
    assert run("eval", "pope", "-m", "none") == DataError.exit_code
    assert run("eval", "pope", "-m", "none", "--data", "dataset/pope") != DataError.exit_code
