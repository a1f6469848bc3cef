"""Sets made by the steps of their entries: trees, links, conversions, and what is missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support import organize_world as world
from support.videos import write_video
from vlm.core.errors import DataError, FetchError, UnknownName
from vlm.core.fetch.installed import entry_state
from vlm.core.fetch.manifest import files_below
from vlm.core.home import dataset
from vlm.core.organize.organize_set import OrganizeOptions, organize
from vlm.core.sample.records import iter_jsonl

picture, downloaded, entry_of, record = world.picture, world.downloaded, world.entry_of, world.record
zip_bytes, tar_bytes = world.zip_bytes, world.tar_bytes


@pytest.fixture(autouse=True)
def vlm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def test_archives_in_parts_and_alone_become_the_tree_and_the_second_run_is_a_no_op():
    split = tar_bytes({f"long_mr/train/{i}.jpg": picture(i) for i in range(3)})
    folder = downloaded(
        "set",
        {
            "data/long_mr.tar.gz.partaa": split[:1000],
            "data/long_mr.tar.gz.partab": split[1000:],
            "video/star.zip": zip_bytes({"clips/a.mp4": b"a"}),
            "video/ssv2.zip": zip_bytes({"ssv2/b.mp4": b"b", "ssv2/c.mp4": b"c"}),
            "top.zip": zip_bytes({"set/images/1.png": picture(9, "PNG")}),
        },
    )
    steps = [
        {"unpack": {"archives": "data/long_mr.tar.gz.part*", "parts": True, "into": "data/long_mr"}},
        {"unpack": {"archives": "video/*.zip", "into": "video/{stem}"}},
        {"unpack": {"archives": "top.zip"}},
    ]
    tree = ("data/long_mr/train/*.jpg", "images")
    entry = entry_of("set", steps, tree=tree)
    assert entry_state(entry) == "downloaded"
    catalogue = {"set": entry}
    assert organize("set", catalogue=catalogue) == "organised"
    found = {name for _, name in files_below(folder) if not name.startswith(".")}
    assert found >= {
        "data/long_mr/train/2.jpg",
        "video/star/clips/a.mp4",
        "video/ssv2/b.mp4",
        "images/1.png",
        "ledger-set.jsonl",
    }
    assert (folder / "data/long_mr/train/2.jpg").read_bytes() == picture(2)
    assert not (folder / ".partial").exists()
    assert entry_state(entry) == "present"
    before = (folder / "images/1.png").stat().st_ino
    assert organize("set", catalogue=catalogue) == "present"
    assert (folder / "images/1.png").stat().st_ino == before
    (folder / "data/long_mr/train/0.jpg").unlink()
    (folder / "images/1.png").write_bytes(b"cut")
    assert organize("set", catalogue=catalogue) == "organised"
    assert (folder / "data/long_mr/train/0.jpg").read_bytes() == picture(0)
    assert (folder / "images/1.png").read_bytes() == picture(9, "PNG")
    for archive in [*folder.glob("data/*.part*"), *folder.glob("video/*.zip"), folder / "top.zip"]:
        archive.unlink()  # to save room
    assert entry_state(entry) == "present"
    assert organize("set", catalogue=catalogue) == "present"
    (folder / ".vlm-organised-set.json").unlink()
    assert entry_state(entry) == "damaged"


def test_a_kill_between_the_manifest_and_the_end_leaves_no_working_folder(monkeypatch: pytest.MonkeyPatch):
    folder = downloaded("set", {"top.zip": zip_bytes({"set/images/1.png": picture(9, "PNG")})})
    catalogue = {"set": entry_of("set", [{"unpack": {"archives": "top.zip"}}], tree=("images",))}
    with monkeypatch.context() as killed:
        killed.setattr("vlm.core.organize.tree._clear", lambda scratch: None)
        assert organize("set", catalogue=catalogue) == "organised"
    assert (folder / ".partial").exists()
    assert organize("set", catalogue=catalogue) == "present"
    assert not (folder / ".partial").exists()


def test_links_lead_to_the_one_copy_and_real_folders_stay():
    downloaded("coco/train2017", {"1.jpg": picture(1)})
    pool = entry_of("coco", [], folder="dataset/coco/train2017")
    folder = downloaded("sft", {"a.jsonl": b""})
    (folder / "data/own").mkdir(parents=True)
    (folder / "data/own/mine.jpg").write_bytes(b"mine")
    (folder / "data/coco").mkdir(parents=True)
    (folder / "data/coco/train2017").symlink_to("nowhere")
    steps = [
        {"link": {"from": "coco/train2017", "to": "data/coco/train2017"}},
        {"link": {"from": "coco/train2017", "to": "data/own"}},
    ]
    entry = entry_of("sft", steps, needs=["coco"])
    catalogue = {"coco": pool, "sft": entry}
    assert organize("sft", catalogue=catalogue) == "organised"
    link = folder / "data/coco/train2017"
    assert str(link.readlink()) == "../../../coco/train2017"
    assert (link / "1.jpg").read_bytes() == picture(1)
    assert [p.name for p in (folder / "data/own").iterdir()] == ["mine.jpg"]
    assert organize("sft", catalogue=catalogue) == "present"
    link.unlink()
    assert organize("sft", catalogue=catalogue) == "organised"
    assert link.is_symlink()


def test_all_that_is_missing_is_named_at_once_with_the_step_that_fixes_it():
    downloaded("set", {"a.zip": zip_bytes({"x.jpg": picture()})})
    hand = {"kind": "manual", "instructions": "ask Ada", "paths": ["images/*"], "mirror": "Bob"}
    pool = entry_of("pool", [{"jpeg": {"folder": "images"}}], source=hand)
    far = entry_of("far", [])
    steps = [
        {"unpack": {"archives": "a.zip", "into": "pictures"}},
        {"unpack": {"archives": "b.zip"}},
        {"link": {"from": "pool/images", "to": "pool"}},
    ]
    entry = entry_of("set", steps, needs=["pool", "far"], tree=["pictures/*.jpg", "notes.txt"])
    catalogue = {"pool": pool, "far": far, "set": entry}
    with pytest.raises(DataError) as error:
        organize("set", catalogue=catalogue)
    assert str(error.value).splitlines() == [
        "set is incomplete; missing:",
        "  dataset/pool/images/* by hand: ask Ada",
        "  dataset/far: vlm download far",
        "  dataset/set/b.zip",
        "  dataset/set/notes.txt",
    ]
    assert (dataset() / "set/pictures/x.jpg").exists()  # what could be done is done
    assert entry_state(entry) == "downloaded"
    assert entry_state(pool) == "absent"
    with pytest.raises(DataError, match=r"pool/images/\*, by hand: ask Ada Mirror: Bob"):
        organize("pool", catalogue=catalogue)
    with pytest.raises(UnknownName, match="pool"):
        organize("poul", catalogue=catalogue)


def test_gif_and_png_become_jpeg_and_names_in_records_are_corrected():
    hand = {"kind": "manual", "instructions": "-", "paths": ["images/*"]}
    pool = entry_of("ocr_vqa", [{"jpeg": {"folder": "images"}}], source=hand)
    images = dataset() / "ocr_vqa/images"
    images.mkdir(parents=True)
    for name, content in {
        "a.gif": picture(1, "GIF"), "b.png": picture(2, "PNG"), "c.jpg": picture(3), "bad.gif": b"GIF89a"
    }.items():  # fmt: skip
        (images / name).write_bytes(content)
    names = ["a.gif", "b.jpg", "c.jpg", "bad.gif", "gone.jpg"]
    downloaded(
        "llava", {"mix.json": json.dumps([record(i, f"ocr_vqa/images/{n}") for i, n in enumerate(names)]).encode()}
    )
    steps = [
        {"link": {"from": "ocr_vqa/images", "to": "ocr_vqa/images"}},
        {"records": {"from": "llava/mix.json", "to": "llava/mix.jsonl", "jpg": True, "beside": True}},
    ]
    built = {"kind": "built", "command": "vlm data organize mix"}
    entry = entry_of("mix", steps, source=built, needs=["ocr_vqa"], records={"llava/mix.jsonl": 5})
    catalogue = {"ocr_vqa": pool, "mix": entry}
    (images / "gone.jpg").write_bytes(b"no picture")
    (images / "c.jpg").write_bytes(picture(3)[:-200])
    with pytest.raises(DataError, match="3 of 5 records cannot be used") as error:
        organize("mix", catalogue=catalogue)
    assert "--max-lost" in error.value.fix
    (images / "c.jpg").write_bytes(picture(3))  # what was fixed is looked at again
    assert organize("mix", OrganizeOptions(max_lost=0.5), catalogue=catalogue) == "organised"
    with Image.open(images / "b.jpg") as made, Image.open(images / "b.png") as original:
        difference = np.asarray(made, dtype=int) - np.asarray(original.convert("RGB"), dtype=int)
        assert (made.format, made.size) == ("JPEG", (64, 48))
        assert abs(difference).mean() < 3
    rows = [row for _, row in iter_jsonl(dataset() / "mix/llava/mix.jsonl")]
    assert [row["image"].rsplit("/", 1)[1] for row in rows] == ["a.jpg", "b.jpg", "c.jpg"]
    ledger = [row for _, row in iter_jsonl(dataset() / "mix/ledger-mix.jsonl")]
    assert [(row["id"], row["stage"]) for row in ledger] == [("mix.json:4", "media"), ("mix.json:5", "media")]
    manifest = json.loads((dataset() / "mix/.vlm-organised-mix.json").read_text())
    assert manifest["counts"] == {"llava/mix.jsonl": {"records": 5, "used": 3, "dropped": 2, "renamed": 1}}
    converted = [row for _, row in iter_jsonl(dataset() / "ocr_vqa/ledger-ocr_vqa.jsonl")]
    assert [(row["id"], row["stage"]) for row in converted] == [("images/bad.gif", "convert")]


def test_pictures_in_parquet_files_and_middle_frames_of_videos_become_files():
    pictures = [picture(0), picture(1, "PNG"), b"no picture"]
    for i in range(2):
        (dataset() / "set/data").mkdir(parents=True, exist_ok=True)
        table = pa.table({"image": [{"bytes": p, "path": None} for p in pictures], "text": ["a", "b", "c"]})
        pq.write_table(table, dataset() / f"set/data/train-{i}.parquet")
    (dataset() / "set/video").mkdir()
    write_video(dataset() / "set/video/clip.mp4", range(0, 225, 25), (64, 64))
    (dataset() / "set/video/broken.mp4").write_bytes(b"no video")
    hand = {"kind": "manual", "instructions": "-", "paths": ["data/*", "video/*"]}
    steps = [
        {"parquet": {"files": "data/*.parquet", "into": "images"}},
        {"middle_frame": {"videos": "video/*.mp4", "into": "frames"}},
    ]
    entry = entry_of("set", steps, source=hand)
    organize("set", catalogue={"set": entry})
    folder = dataset() / "set"
    names = sorted(p.name for p in (folder / "images").iterdir())
    assert names == ["00000000.jpg", "00000001.png", "00000003.jpg", "00000004.png"]
    assert (folder / "images/00000004.png").read_bytes() == pictures[1]
    with Image.open(folder / "frames/clip.png") as frame:
        assert abs(np.asarray(frame).mean() - 100) < 6  # the fifth of nine frames
    ledger = [row["id"] for _, row in iter_jsonl(folder / "ledger-set.jsonl")]
    assert ledger == ["data/train-0.parquet:2", "data/train-1.parquet:2", "video/broken.mp4"]
    shutil.rmtree(folder / "frames")
    assert organize("set", catalogue={"set": entry}) == "organised"
    assert (folder / "frames/clip.png").exists()


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"a.txt": b"one"}, {"a.txt": b"two!"}),
        ({"a.txt": b"one"}, {"a.txt": b"two"}),
        ({"a": b"one"}, {"a/b": b"two"}),
        ({"a/b": b"one"}, {"a": b"two"}),
        ({"x/a": b"1"}, {"notes.json": b"other"}),
        ({"x/a": b"1"}, {"1.zip": b"itself"}),
    ],
)
def test_two_archives_with_different_files_for_one_path_are_refused_and_nothing_is_replaced(one, two):
    folder = downloaded("set", {"1.zip": zip_bytes(one), "2.zip": zip_bytes(two), "notes.json": b"[]"})
    before = {name: path.read_bytes() for path, name in files_below(folder)}
    entry = entry_of("set", [{"unpack": {"archives": "*.zip"}}])
    for _ in range(2):
        with pytest.raises(FetchError, match="nothing was replaced") as error:
            organize("set", catalogue={"set": entry})
        assert "{stem}" in error.value.fix
        assert {**before, **one}.items() <= {n: p.read_bytes() for p, n in files_below(folder)}.items()
    apart = entry_of("set", [{"unpack": {"archives": "*.zip", "into": "{stem}"}}])
    assert organize("set", catalogue={"set": apart}) == "organised"
    assert {(folder / "2" / name).read_bytes() for name in two} == set(two.values())


def test_two_archives_with_one_and_the_same_file_are_both_unpacked():
    both = {"1.zip": zip_bytes({"README": b"r", "a": b"1"}), "2.zip": zip_bytes({"README": b"r", "b": b"2"})}
    folder = downloaded("set", both)
    assert organize("set", catalogue={"set": entry_of("set", [{"unpack": {"archives": "*.zip"}}])}) == "organised"
    assert {(folder / name).read_bytes() for name in ("README", "a", "b")} == {b"r", b"1", b"2"}


@pytest.mark.parametrize(
    "step",
    [
        {"unpack": {"archives": "*.zip"}},
        {"unpack": {"archives": "*.zip", "into": "images"}},
        {"jpeg": {"folder": "images"}},
        {"records": {"from": "r.json", "to": "images/r.jsonl"}},
        {"middle_frame": {"videos": "*.mp4", "into": "images"}},
        {"parquet": {"files": "*.parquet", "into": "images/x"}},
    ],
)
def test_no_step_writes_through_a_link_into_another_set(step, tmp_path):
    other = downloaded("other", {"images/1.png": picture(1, "PNG")})
    archive = zip_bytes({"images/1.png": b"EVIL", "images/new": b"EVIL"})
    folder = downloaded("set", {"a.zip": archive, "r.json": b"[]", "v.mp4": b"", "p.parquet": b""})
    before = {name: path.read_bytes() for path, name in files_below(other)}
    link = {"link": {"from": "other/images", "to": "images"}}
    with pytest.raises(FetchError, match="leads into another set"):
        organize("set", catalogue={"set": entry_of("set", [link, step])})
    assert {name: path.read_bytes() for path, name in files_below(other)} == before
    if "unpack" in step:  # a person's link to another disk is followed
        (folder / "images").unlink()
        (tmp_path / "disk").mkdir()
        (folder / "images").symlink_to(tmp_path / "disk")
        assert organize("set", catalogue={"set": entry_of("set", [step])}) == "organised"
        assert list((tmp_path / "disk").rglob("new"))
