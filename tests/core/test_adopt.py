"""`vlm data adopt`: published trees are found, verified and linked as they lie; what is not whole is refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.organize_world import picture, record
from vlm.core.errors import DataError
from vlm.core.fetch.catalogue import Entry, load_catalogue
from vlm.core.fetch.fetch import fetch
from vlm.core.fetch.installed import entry_state
from vlm.core.organize.adopt import find_published
from vlm.core.organize.pictures import check_pictures
from vlm.core.organize.tree import organize_tree

CATALOGUE = """
entries:
  - name: long
    kind: data
    title: a set of pages
    license: "-"
    folder: dataset/long-set
    source: {kind: hub, repo: a/b, revision: null}
    organize: [unpack: {archives: "image.tar"}]
    published: {corpus/annotation: data/annotation, corpus/image: data/image}
    pictures:
      data/image/pages/train: [data/annotation/pages.jsonl]
      data/image/shapes/train: [data/annotation/shapes.jsonl]
    records: {data/annotation/pages.jsonl: 3, data/annotation/shapes.jsonl: 2}
  - name: Fruit
    kind: benchmark
    title: fruit
    license: "-"
    folder: dataset/fruit
    source: {kind: url, url: "http://127.0.0.1:9/test.jsonl"}
    organize: [unpack: {archives: x.zip}]
    tree: ["images/*", fruit.csv]
    records: {test.jsonl: 2}
  - name: Stone
    kind: benchmark
    title: stones
    license: "-"
    folder: dataset/stone
    source: {kind: url, url: "http://127.0.0.1:9/stones.jsonl", size: 3}
    tree: [stones.jsonl]
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("VLM_HOME", str(home))
    monkeypatch.chdir(home)
    (home / "own.yaml").write_text(CATALOGUE)
    return home


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A published tree, whole."""
    tree = tmp_path / "published"
    for name, numbers in (("pages", (0, 1, 2)), ("shapes", (3, 4))):
        folder = tree / "corpus/image" / name / "train"
        folder.mkdir(parents=True)
        for number in numbers:
            (folder / f"{number}.jpg").write_bytes(picture(number))
        lines = [json.dumps(record(n, [f"{n}.jpg"])) + "\n" for n in numbers]
        (tree / "corpus/annotation").mkdir(exist_ok=True)
        (tree / f"corpus/annotation/{name}.jsonl").write_text("".join(lines))
    (tree / "data/fruit/images").mkdir(parents=True)
    (tree / "data/fruit/images/a.jpg").write_bytes(picture())
    (tree / "data/fruit/fruit.csv").write_text("a\n")
    (tree / "data/fruit/test.jsonl").write_text("{}\n{}\n")
    (tree / "data/stone").mkdir()
    (tree / "data/stone/stones.jsonl").write_text("{}\n")
    return tree


def content(folder: Path) -> dict[str, Any]:
    paths = sorted(Path(where) / name for where, folders, files in os.walk(folder) for name in [*folders, *files])
    return {
        str(p.relative_to(folder)): str(p.readlink()) if p.is_symlink() else p.is_file() and p.read_bytes()
        for p in paths
    }


def adopt(tree: Path, *names: str, **options: Any) -> None:
    from vlm.cli.commands.data_adopt import adopt as command

    usual = {"dry_run": False, "max_lost": 0.01, "verify": False, "catalogue": Path("own.yaml")}
    command(tree, list(names) or None, **{**usual, **options})


def entry(name: str) -> Entry:
    return load_catalogue(Path("own.yaml"))[name]


NAMES = ("long", "Fruit", "Stone")


def test_a_published_tree_is_linked_as_it_lies_and_again_without_a_change(home: Path, tree: Path) -> None:
    before = content(tree)
    adopt(tree)
    assert [entry_state(entry(name)) for name in NAMES] == ["present"] * 3
    assert (home / "dataset/long-set/data/image/pages/train/0.jpg").read_bytes() == picture(0)
    assert (home / "dataset/fruit/test.jsonl").is_symlink()
    about = json.loads((home / "dataset/long-set/.vlm-organised-long.json").read_text())
    assert about["folders"]["data/image/pages/train"] == {"records": 3, "files": 3, "lost": 0}
    once = content(home)
    adopt(tree)
    assert content(home) == once and content(tree) == before
    assert fetch(entry("Stone")) == "present" == organize_tree(entry("long"), load_catalogue(Path("own.yaml")))


def test_a_dry_run_says_all_and_writes_nothing(home: Path, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(home)
    adopt(tree, dry_run=True)
    assert content(home) == before
    out = capsys.readouterr().out
    assert all(f"{name}: would be adopted from" in out for name in NAMES) and "dataset/fruit/test.jsonl -> " in out


@pytest.mark.parametrize("part", ["", "corpus", "data", "data/fruit"])
def test_a_tree_is_recognized_by_any_of_its_folders(home: Path, tree: Path, part: str) -> None:
    found = {one.entry.name for one in find_published(tree / part, load_catalogue(Path("own.yaml")))}
    expected = {"": set(NAMES), "corpus": {"long"}, "data": {"Fruit", "Stone"}, "data/fruit": {"Fruit"}}
    assert found == expected[part]


def test_folders_under_other_names_are_recognized_by_what_is_in_them(home: Path, tree: Path) -> None:
    (tree / "corpus").rename(tree / "v2")
    (tree / "data").rename(tree / "benchmarks")
    adopt(tree / "v2")
    adopt(tree / "benchmarks")
    assert {one.entry.name for one in find_published(tree / "benchmarks/stone", load_catalogue(Path("own.yaml")))} == {
        "Stone"
    }
    (tree / "benchmarks/stone").rename(tree / "rocks")
    assert [entry_state(entry(name)) for name in NAMES] == ["present", "present", "damaged"]
    shutil.rmtree(home / "dataset/stone")
    adopt(tree / "rocks", "Stone")
    assert entry_state(entry("Stone")) == "present"


HALF = {
    "a picture is gone": ("corpus/image/pages/train/1.jpg", None, "1 of 3 records name a file"),
    "a picture has no bytes": ("corpus/image/pages/train/1.jpg", b"", "1 of 3 records name a file"),
    "a folder is gone": ("corpus/image/shapes", None, "data/image/shapes/train"),
    "records are cut off": ("corpus/annotation/pages.jsonl", b"{}\n", "1 records instead of 3"),
    "annotation is gone": ("corpus/annotation", None, "corpus/annotation"),
    "a file is gone": ("data/fruit/fruit.csv", None, "not there: fruit.csv"),
    "pictures are gone": ("data/fruit/images/a.jpg", None, "not there: images/*"),
    "a file has another size": ("data/stone/stones.jsonl", b"{", "1 bytes instead of 3"),
}


@pytest.mark.parametrize(("name", "left", "why"), HALF.values(), ids=HALF)
def test_a_half_copied_tree_is_named_refused_and_nothing_is_written(
    home: Path, tree: Path, name: str, left: bytes | None, why: str
) -> None:
    path = tree / name
    if left is not None:
        path.write_bytes(left)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    before = content(home), content(tree)
    with pytest.raises(DataError, match="nothing was written") as error:
        adopt(tree)
    assert why in str(error.value) and "adopt the whole ones" in str(error.value.fix)
    assert (content(home), content(tree)) == before


def test_a_folder_of_another_benchmark_is_named_for_what_it_is(home: Path, tree: Path) -> None:
    shutil.rmtree(tree / "data/stone")
    shutil.copytree(tree / "data/fruit", tree / "data/stone")
    before = content(home)
    with pytest.raises(DataError) as error:
        adopt(tree)
    assert "Stone in" in error.value.found and "it looks like Fruit" in error.value.found
    assert content(home) == before
    adopt(tree, "Fruit", "long")
    assert entry_state(entry("Stone")) == "absent"


def test_what_is_here_already_stays(home: Path, tree: Path) -> None:
    (home / "dataset/fruit").mkdir(parents=True)
    (home / "dataset/fruit/test.jsonl").write_text("mine")
    before = content(home)
    with pytest.raises(DataError, match="is there already"):
        adopt(tree, "Fruit")
    assert content(home) == before


def test_files_that_lie_where_we_keep_them_get_manifests_alone(home: Path, tree: Path) -> None:
    shutil.copytree(tree / "data/fruit", home / "dataset/fruit")
    adopt(home / "dataset", "Fruit")
    assert entry_state(entry("Fruit")) == "present" and not any(
        p.is_symlink() for p in (home / "dataset/fruit").iterdir()
    )


def test_a_tree_that_went_away_is_damaged_and_never_written_into(home: Path, tree: Path) -> None:
    adopt(tree)
    (tree / "data/stone/stones.jsonl").write_text("{")
    shutil.rmtree(tree / "corpus/image")
    before = content(tree)
    assert [entry_state(entry(name)) for name in NAMES] == ["damaged", "present", "damaged"]
    with pytest.raises(DataError, match="is adopted from"):
        fetch(entry("Stone"))
    with pytest.raises(DataError, match="is adopted from"):
        organize_tree(entry("long"), load_catalogue(Path("own.yaml")))
    assert content(tree) == before


def test_a_miniature_and_an_empty_or_missing_folder_are_refused(home: Path, tree: Path) -> None:
    (tree / "data/stone/mini.json").write_text("{}")
    with pytest.raises(DataError, match="generated miniature"):
        adopt(tree, "Stone")
    (tree / "empty").mkdir()
    for folder in (tree / "empty", tree / "none"):
        with pytest.raises(DataError, match=r"no published folder|no such folder"):
            adopt(folder)


def test_each_of_the_49_folders_is_checked_by_name_and_by_its_records(tmp_path: Path) -> None:
    v2pe = load_catalogue()["V2PE-Data"]
    assert len(v2pe.pictures) == 49
    for folder, annotations in v2pe.pictures.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jpg").write_bytes(b"x")
        for name in annotations:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text('{"image": ["a.jpg"]}\n')
    whole = check_pictures(v2pe.pictures, tmp_path)
    assert not whole.missing and not whole.losses and len(whole.counts) == 49
    for folder, annotations in v2pe.pictures.items():
        (tmp_path / folder / "a.jpg").rename(tmp_path / folder / "b.jpg")
        found = check_pictures({folder: annotations}, tmp_path)
        assert found.counts[folder].lost == len(annotations) and folder in found.faults(0.01)[0]
        (tmp_path / folder / "b.jpg").unlink()
        assert check_pictures({folder: annotations}, tmp_path).missing == [f"{folder}: the folder is empty"]
        (tmp_path / folder).rmdir()
        assert check_pictures({folder: annotations}, tmp_path).missing == [folder]


def test_records_may_name_pictures_from_the_published_root_and_not_outside(tmp_path: Path) -> None:
    (tmp_path / "data/image/x").mkdir(parents=True)
    (tmp_path / "data/image/x/a.jpg").write_bytes(b"x")
    lines = ['{"image": "dataset/image/x/a.jpg"}', '{"image": "../../secret"}', "broken", '{"image": 3}', '{"text": 1}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    found = check_pictures({"data/image/x": ("x.jsonl",)}, tmp_path)
    assert (found.counts["data/image/x"].records, found.counts["data/image/x"].lost) == (5, 3)


SHARED = """
  - name: coco-part
    kind: data
    title: pictures that several sets share
    license: "-"
    folder: dataset/coco/part
    source: {kind: url, url: "http://127.0.0.1:9/part.zip"}
    organize: [unpack: {archives: part.zip}]
    tree: ["*.jpg"]
    files: {"*.jpg": 3}
    published: {data/coco/part: ""}
  - name: Album
    kind: data
    title: records that point into the shared pictures
    license: "-"
    folder: dataset/album
    needs: [coco-part]
    source: {kind: built, command: vlm data organize Album}
    organize: [link: {from: coco/part, to: pictures}]
    tree: ["pictures/*.jpg"]
"""


@pytest.fixture
def shared(home: Path, tree: Path) -> Path:
    """The folder of shared pictures of the published tree, whole."""
    (home / "own.yaml").write_text(CATALOGUE + SHARED)
    folder = tree / "data/coco/part"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    return folder


def test_shared_pictures_are_an_entry_of_their_own_and_what_needs_them_finds_them(
    home: Path, tree: Path, shared: Path
) -> None:
    before = content(tree)
    adopt(tree)
    assert entry_state(entry("coco-part")) == "present" == fetch(entry("coco-part"))
    assert organize_tree(entry("Album"), load_catalogue(Path("own.yaml"))) == "organised"
    assert (home / "dataset/album/pictures/2.jpg").read_bytes() == picture(2)
    assert content(tree) == before
    (shared / "1.jpg").unlink()
    assert entry_state(entry("coco-part")) == "damaged"


@pytest.mark.parametrize("part", ["", "data", "data/coco", "data/coco/part"])
def test_shared_pictures_are_recognized_by_any_folder_above_them(tree: Path, shared: Path, part: str) -> None:
    assert "coco-part" in {one.entry.name for one in find_published(tree / part, load_catalogue(Path("own.yaml")))}


@pytest.mark.parametrize("cut", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_part_of_shared_pictures_is_refused_and_the_others_can_be_named_alone(
    home: Path, tree: Path, shared: Path, cut: Any
) -> None:
    cut(shared / "0.jpg")
    before = content(home)
    with pytest.raises(DataError, match=r"coco-part.*\n.*\*\.jpg: 2 files that are not empty instead of 3"):
        adopt(tree)
    assert content(home) == before
    adopt(tree, "Fruit")
    assert [entry_state(entry(name)) for name in ("coco-part", "Fruit")] == ["absent", "present"]


def test_the_pictures_of_coco_are_counted_where_the_published_trees_have_them() -> None:
    known = {name: entry for name, entry in load_catalogue().items() if name.startswith("coco-")}
    assert {name: entry.files["*.jpg"] for name, entry in known.items()} == {
        "coco-train2017": 118_287,
        "coco-train2014": 82_783,
        "coco-val2014": 40_504,
    }
    assert all(f"data/coco/{name.removeprefix('coco-')}" in entry.published for name, entry in known.items())
