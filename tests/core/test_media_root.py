"""Paths in records name files below the folder of the media, or below a folder that the user allowed; nothing else."""

import os
from pathlib import Path

import pytest

from vlm.core.errors import DataError
from vlm.core.media_root import MediaRoot
from vlm.core.sample.records import read_record


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A home with two sets, and a folder beside it."""
    for folder in ("home/dataset/a/images", "home/dataset/b", "beside/more"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("home/dataset/a/images/0.png", "home/dataset/b/1.png", "beside/2.png", "beside/more/3.png"):
        (tmp_path / file).write_bytes(b"")
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    return tmp_path


def record(name, key="image"):
    return {key: name, "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}


def located(name, root, **allowed):
    return read_record(record(name), root=MediaRoot(root, **allowed), where="t.jsonl:1").media[0]["path"]


@pytest.mark.parametrize(
    "name",
    ["images/0.png", "./images/../images/0.png", "images//0.png", "images/none.png", "images/a:b\\c d#%*[1].png", "-x"],
)
def test_names_below_the_folder_are_read(name, places):
    root = places / "home/dataset/a"
    assert located(name, root) == str(root / name)


def test_an_absolute_path_below_the_folder_is_read(places):
    root = places / "home/dataset/a"
    assert located(str(root / "images/0.png"), root) == str(root / "images/0.png")


@pytest.mark.parametrize("key", ["image", "video"])
@pytest.mark.parametrize("name", ["../b/1.png", "../../../beside/2.png", "images/../../b/1.png", "/etc/passwd", ".."])
def test_names_that_lead_outside_are_errors_that_say_how_to_allow_it(name, key, places):
    with pytest.raises(DataError, match=r"^t.jsonl:1: .* leads out of .*dataset/a.*--allow-outside DIR"):
        read_record(record(name, key), root=places / "home/dataset/a", where="t.jsonl:1")


def test_the_same_absolute_path_is_read_where_its_folder_is_allowed(places):
    root, beside = places / "home/dataset/a", places / "beside"
    for name in (str(beside / "2.png"), "../../../beside/2.png"):
        with pytest.raises(DataError, match="leads out"):
            located(name, root)
        assert Path(located(name, root, outside=(beside,))).samefile(beside / "2.png")
    with pytest.raises(DataError, match="leads out"):
        located(str(beside / "2.png"), root, outside=(beside / "more",))
    with pytest.raises(DataError, match="leads out"):
        located(str(places / "beside2/2.png"), root, outside=(beside,))


@pytest.mark.parametrize("target", ["beside/2.png", "beside"])
def test_a_link_that_leads_outside_is_an_error_unless_its_target_is_allowed(target, places):
    root = places / "home/dataset/a"
    (root / "link").symlink_to(places / target)
    name = "link" if target.endswith("png") else "link/2.png"
    with pytest.raises(DataError, match=r"leads out of .* by a link to .*beside"):
        located(name, root)
    assert located(name, root, outside=(places / "beside",)) == str(root / name)


def test_links_between_sets_and_sets_on_other_disks_are_read(places):
    root, beside = places / "home/dataset/a", places / "beside"
    (root / "b").symlink_to(os.path.relpath(places / "home/dataset/b", root))  # as `vlm data organize` links
    (root / "up").symlink_to("..")  # as a haystack is linked
    (root / "one.png").symlink_to(places / "home/dataset/b/1.png")
    (places / "home/dataset/big").symlink_to(beside)  # a set on another disk
    (root / "big").symlink_to("../big")
    for name in ("b/1.png", "up/b/1.png", "one.png", "big/2.png", "big/more/3.png"):
        assert Path(located(name, root)).is_file()
    assert Path(located("2.png", places / "home/dataset/big")).is_file()  # the folder itself is a link
