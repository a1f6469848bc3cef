"""Records that name what they must not, or what never answers, are named losses of a run; nothing hangs or leaks in."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from vlm.core.check.check import CheckedFile, check
from vlm.core.media_root import MediaRoot
from vlm.core.sample.encode import ImageTokenIds
from vlm.core.sample.measure import Rules
from vlm.models import load_processor
from vlm.train.run.loop import train

BAD = {
    "pipe.png": "is a named pipe",
    "/dev/zero": "leads out",
    "../outside.png": "leads out",
    "OUTSIDE": "leads out",
    "link.png": "leads out",
    "eps.jpg": "is PostScript",
    "page.jpg": "is a web page",
    "list.mp4": "is a playlist",
    "list.m3u8": "is a playlist",
    "x" * 300: "too long",
}


@pytest.fixture
def hostile(home, records, recipe, tmp_path):
    """A recipe over the usual records and one for each of `BAD`, and the picture outside."""
    folder = tmp_path / "sets/hostile"
    (folder / "images").mkdir(parents=True)
    outside = tmp_path / "sets/outside.png"
    Image.new("RGB", (64, 64), "red").save(outside)
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "eps.jpg").write_text(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({outside}) (w) file\n")
    (folder / "page.jpg").write_text("<!DOCTYPE html><p>404")
    for name in ("list.mp4", "list.m3u8"):
        (folder / name).write_text(f"#EXTM3U\n#EXTINF:10,\nfile://{outside}\n#EXT-X-ENDLIST\n")
    lines = [{**r, "image": [str(home / "dataset/tiny" / name) for name in r["image"]]} for r in records]
    for name in BAD:
        kind = "video" if name.startswith("list") else "image"
        mark = f"<{kind}>\nWhat is it?"
        turns = [{"from": "human", "value": mark}, {"from": "gpt", "value": "It is red."}]
        lines.append({"id": name[:9], kind: name.replace("OUTSIDE", str(outside)), "conversations": turns})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = {"name": "hostile", "file": str(folder / "train.jsonl"), "root": str(folder)}
    allowed = f"allow_outside=[{home}/dataset/tiny]"
    return recipe(allowed, "steps=6", "max_lost=0.9", "batch.samples=6", data=[entry]), outside, folder


def losses(folder):
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return {int(entry["id"].split(":")[1]): entry["reason"] for entry in entries if entry["what"] == "dropped"}


def test_each_hostile_record_is_a_named_loss(hostile, records, tmp_path):
    recipe, _, _ = hostile
    train(recipe, tmp_path / "run", quiet=True)
    lost = losses(tmp_path / "run")
    assert sorted(lost) == list(range(len(records) + 1, len(records) + len(BAD) + 1))
    for line, reason in zip(sorted(lost), BAD.values(), strict=True):
        assert reason in lost[line], lost[line]


def test_an_allowed_folder_is_read_and_recorded_and_changes_no_numbers(hostile, records, tmp_path):
    recipe, outside, _ = hostile
    wider = recipe.model_copy(update={"allow_outside": (*recipe.allow_outside, str(outside.parent))})
    assert wider.digest == recipe.digest
    train(wider, tmp_path / "run", quiet=True)
    reasons = [BAD[name] for name in BAD if name not in ("../outside.png", "OUTSIDE", "link.png")]
    assert [reason in lost for reason, lost in zip(reasons, losses(tmp_path / "run").values(), strict=True)]
    assert str(outside.parent) in (tmp_path / "run/recipe.json").read_text()


def test_the_check_names_the_same_records(hostile, records):
    recipe, _, folder = hostile
    processor = load_processor(recipe.model.start)
    spec, tokenizer = processor.spec, Path(os.environ["VLM_HOME"]) / recipe.model.start
    rules = Rules(tokenizer, spec.template, spec.image_rule, spec.tokens_per_tile, ImageTokenIds(0, 0, 0))
    root = MediaRoot(folder, (Path(recipe.allow_outside[0]),))
    ((_, found),) = check(rules, [CheckedFile("hostile", folder / "train.jsonl", root)])
    kinds = {fault.line: fault.kind for fault in found.faults if fault.line > len(records)}
    named = [kinds.get(len(records) + 1 + i) for i in range(len(BAD))]
    assert named[:7] == ["unreadable", "outside", "outside", "outside", "outside", "unreadable", "unreadable"]
