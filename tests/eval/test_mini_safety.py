"""Miniatures replace only what a miniature wrote: downloads, own files and other benchmarks stay."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlm.core.errors import DataError
from vlm.core.fetch.catalogue import Entry
from vlm.core.fetch.fetch import fetch
from vlm.core.fetch.manifest import PARTIAL, read_manifest
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import WRITTEN, make_mini


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(folder: Path, name: str, why: str, **options: int) -> None:
    before = content(folder)
    with pytest.raises(DataError, match=why) as error:
        make_mini(name, folder, **options)
    assert content(folder) == before
    assert error.value.fix


def test_a_download_beside_a_miniature_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    (tmp_path / "real.json").write_text('{"big": 1}')
    source = {"kind": "url", "url": (tmp_path / "real.json").as_uri()}
    entry = Entry(name="real", kind="benchmark", title="t", license="-", folder="dataset/pope", source=source)
    make_mini("POPE", entry.path, n=2)
    with pytest.raises(DataError, match="generated miniature"):  # as earlier versions did: the mark is put back
        fetch(entry)
    (entry.path / WRITTEN).rename(tmp_path / "written")
    (entry.path / "mini.json").rename(tmp_path / "mini.json")
    fetch(entry)
    (tmp_path / "written").rename(entry.path / WRITTEN)
    (tmp_path / "mini.json").rename(entry.path / "mini.json")
    refused(entry.path, "POPE", "no miniature, or were changed", seed=3, n=2)
    assert (entry.path / "real.json").read_text() == '{"big": 1}'


def test_an_interrupted_download_beside_a_miniature_stays(tmp_path: Path) -> None:
    folder = make_mini("POPE", tmp_path / "p", n=2)
    (folder / PARTIAL / "0").mkdir(parents=True)
    (folder / PARTIAL / "0" / "big.zip.part").write_text("gigabytes")
    refused(folder, "POPE", r"big\.zip\.part", seed=3, n=2)


def test_a_subset_with_a_marker_of_its_own_stays(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "llava_pope_test.jsonl").write_text("{}")
    (folder / "mini.json").write_text('{"benchmark": "POPE", "seed": 0, "counts": {"human": 2}}')
    refused(folder, "POPE", "no miniature", seed=3)
    assert not (folder / ".lock").exists()


def test_a_real_file_under_the_name_of_a_miniature_stays(tmp_path: Path) -> None:
    folder = make_mini("POPE", tmp_path / "p", n=2)
    name = next(name for name in read_manifest(folder, WRITTEN)["files"] if name.endswith("jsonl"))
    (folder / name).write_text("the published one")
    refused(folder, "POPE", name.replace(".", r"\."), seed=3, n=2)
    refused(folder, "POPE", name.replace(".", r"\."), seed=0, n=2)


@pytest.mark.parametrize(("first", "second"), [("MMBench-dev-en", "MMBench-dev-cn"), ("MMBench-dev-en", "CCBench")])
def test_another_benchmark_of_the_same_folder_stays(tmp_path: Path, first: str, second: str) -> None:
    folder = make_mini(first, tmp_path / "m", n=1)
    refused(folder, second, f"miniature of {load_benchmark(first).name}", n=1)


def test_a_planted_manifest_does_not_give_files_away(tmp_path: Path) -> None:
    folder, victim = tmp_path / "d" / "p", tmp_path / "d" / "victim.txt"
    folder.mkdir(parents=True)
    victim.write_text("keep")
    about = {"benchmark": "POPE", "seed": 9, "n": None}
    files = {"../victim.txt": {"size": 4, "sha256": "0" * 64}}
    (folder / WRITTEN).write_text(json.dumps({"name": "POPE", "source": about, "files": files}))
    make_mini("POPE", folder, n=2)
    assert victim.read_text() == "keep"


def test_another_seed_replaces_all_files_of_the_first_and_a_lost_one_is_made_again(tmp_path: Path) -> None:
    folder = make_mini("ChartQA", tmp_path / "c", seed=0, n=3)
    make_mini("ChartQA", folder, seed=5, n=1)
    assert content(folder) == content(make_mini("ChartQA", tmp_path / "d", seed=5, n=1))
    whole = content(folder)
    (folder / next(iter(read_manifest(folder, WRITTEN)["files"]))).unlink()
    assert content(make_mini("ChartQA", folder, seed=5, n=1)) == whole


def test_what_a_kill_left_is_finished_or_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = content(make_mini("ChartQA", tmp_path / "whole", n=1))
    replace = os.replace
    for moment in (1, 3):
        folder, moved = tmp_path / str(moment), []

        def dies(path: Any, target: Any, folder: Path = folder, moved: list[Any] = moved, at: int = moment) -> None:
            if Path(path).is_relative_to(folder / PARTIAL / "mini"):
                moved.append(path)
                if len(moved) == at:
                    raise KeyboardInterrupt
            replace(path, target)

        monkeypatch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            make_mini("ChartQA", folder, n=1)
        monkeypatch.undo()
        assert read_manifest(folder, WRITTEN) is None
        assert content(make_mini("ChartQA", folder, n=1)) == whole


def test_processes_that_start_at_once_all_get_the_one_miniature(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from vlm.eval.mini import make_mini\n"
    code += "input(); print(make_mini('ChartQA', Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(tmp_path / "c")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ.copy()}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert said.strip() == str(tmp_path / "c")
    load_items(load_benchmark("ChartQA"), tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
