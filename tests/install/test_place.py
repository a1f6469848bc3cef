"""The workflow where a user stands: placed in one go, brought up to date, and never over what a person has edited."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vlm.cli.commands.reproduce import snakemake_options
from vlm.cli.workflow import place
from vlm.cli.workflow.place import place_workflow, shipped_files
from vlm.core.errors import ConfigError, DataError, VlmError

ROOT = Path(__file__).parents[2]


def in_git() -> set[str]:
    """The files of the workflow that git holds."""
    listed = subprocess.run(
        ["git", "ls-files", "Snakefile", "workflows", "profiles"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split())


def test_all_files_of_the_repository_are_placed_with_the_link_that_snakemake_looks_for(tmp_path: Path) -> None:
    placed = place_workflow(tmp_path)
    assert set(placed.made) == in_git() and not placed.kept
    for name in placed.made:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
    assert (tmp_path / "slurm/config.yaml").samefile(tmp_path / "profiles/slurm/config.yaml")


def test_again_it_writes_nothing(tmp_path: Path) -> None:
    place_workflow(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    placed = place_workflow(tmp_path)
    assert not placed.made and len(placed.same) == len(in_git())
    (tmp_path / place.NOTE).unlink()
    assert not place_workflow(tmp_path).made
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path.name != place.NOTE)


def test_an_edited_file_stays_and_another_is_brought_up_to_date(tmp_path: Path, monkeypatch) -> None:
    release = tmp_path / "release"
    for name, source in shipped_files().items():
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_bytes(source.read_bytes())
    monkeypatch.setattr(place, "PACKED", release)
    place_workflow(tmp_path / "study")
    profile = tmp_path / "study/profiles/slurm/config.yaml"
    profile.write_text("mine\n")
    (release / "Snakefile").write_text("# the next release\n")
    (release / "profiles/slurm/config.yaml").write_text("# the next release\n")
    placed = place_workflow(tmp_path / "study")
    assert (placed.made, placed.kept) == (["Snakefile"], ["profiles/slurm/config.yaml"])
    assert profile.read_text() == "mine\n"
    assert place_workflow(tmp_path / "study").kept == ["profiles/slurm/config.yaml"], "and stays edited"
    assert place_workflow(tmp_path / "study", replace=True).made == ["profiles/slurm/config.yaml"]


@pytest.mark.parametrize("note", ["", "[]", '{"files": 3}', '{"files": {"Snakefile": 3}}'])
def test_a_damaged_note_costs_nothing(note: str, tmp_path: Path) -> None:
    place_workflow(tmp_path)
    (tmp_path / place.NOTE).write_text(note)
    (tmp_path / "Snakefile").write_text("mine\n")
    assert place_workflow(tmp_path).kept == ["Snakefile"]
    assert json.loads((tmp_path / place.NOTE).read_text())["files"].keys() >= in_git() - {"Snakefile"}


def test_a_folder_where_a_file_belongs_stops_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").mkdir()
    with pytest.raises(VlmError, match="is no file"):
        place_workflow(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Snakefile"]


def test_the_repository_itself_gets_no_note() -> None:
    assert set(place_workflow(ROOT).same) == in_git()
    assert not (ROOT / place.NOTE).exists()


def test_an_installation_without_the_files_says_so(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(place, "PACKED", tmp_path / "none")
    monkeypatch.setattr(place, "CHECKOUT", tmp_path)
    with pytest.raises(DataError, match="no Snakefile in"):
        shipped_files()


def test_reproduce_places_the_workflow_and_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    options = snakemake_options("v2pe", "local", Path("workflows/config/debug.yaml"))
    assert options == ["v2pe", "--profile", "profiles/local", "--configfile", "workflows/config/debug.yaml"]
    assert {name for name in in_git() if not (tmp_path / name).is_file()} == set()
    assert f"put the workflow into {tmp_path}" in capsys.readouterr().err
    (tmp_path / "workflows/rules/train.smk").write_text("mine\n")
    snakemake_options("v2pe", "slurm", None)
    assert (tmp_path / "workflows/rules/train.smk").read_text() == "mine\n" and not capsys.readouterr().err


@pytest.mark.parametrize(("profile", "config"), [("slrum", None), ("slurm", Path("workflows/config/papre.yaml"))])
def test_a_wrong_profile_or_configuration_places_nothing(profile, config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=profile if config is None else "papre"):
        snakemake_options("v2pe", profile, config)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The wheel of the command line, and one that is built from its source archive."""
    out = tmp_path_factory.mktemp("dist")
    pytest.importorskip("hatchling")
    for kind in ("wheel", "sdist"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
        subprocess.run(command, cwd=ROOT / "packages/cli", check=True, capture_output=True)
    (archive,) = out.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", archive.name], cwd=out, check=True)
    folder = out / archive.name.removesuffix(".tar.gz")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out / "again")]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return out


def test_a_wheel_carries_the_workflow_once_and_so_does_one_from_the_source_archive(built: Path) -> None:
    for folder in (built, built / "again"):
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as file:
            inside = {name for name in file.namelist() if name.startswith("vlm/cli/workflow/files/")}
            assert {name.removeprefix("vlm/cli/workflow/files/") for name in inside} == in_git()
            assert file.read("vlm/cli/workflow/files/Snakefile") == (ROOT / "Snakefile").read_bytes()
            ours = ("vlm/cli/", "farlens_cli-", "snakemake_logger_plugin_vlm/")
            assert not [name for name in file.namelist() if not name.startswith(ours)]
