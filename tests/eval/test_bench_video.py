"""MVBench and Video-MME: real videos, the published frames, prompts byte for byte, scores end to end."""

import json
from pathlib import Path

import pytest

from support import benchmark_check as check
from vlm.core.errors import DataError
from vlm.core.sample.encode import frames_as_images
from vlm.core.sample.media import load_video
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import Item, load_items
from vlm.eval.loaders.video import mvbench_frame_indices
from vlm.eval.mini import make_mini

CAREFULLY = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
SELECT = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option.\n"
)


def shown(item: Item) -> str:
    """The user's text with `<image>` for each image and each frame of a video."""
    (message,) = frames_as_images(item.messages, load_video, 8)
    return "".join(part["text"] if part["type"] == "text" else "<image>" for part in message["content"])


def frames_of(item: Item) -> list:
    (message,) = frames_as_images(item.messages, load_video, 8)
    return [part["image"] for part in message["content"] if part["type"] == "image"]


@pytest.fixture(scope="module")
def mvbench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mvbench") / "m"
    return *check.mini("MVBench", folder), folder


def test_complete_downloads_have_the_published_numbers() -> None:
    assert load_benchmark("MVBench").counts.groups == dict.fromkeys(load_benchmark("MVBench").options["tasks"], 200)
    assert len(load_benchmark("MVBench").options["tasks"]) == 20
    assert sum(load_benchmark("Video-MME").counts.groups.values()) == 2700
    assert load_benchmark("MVBench").max_new_tokens == 1000 and load_benchmark("Video-MME").max_new_tokens == 16
    for name in ("MVBench", "Video-MME"):
        assert load_benchmark(name).image_override("internvl2") == {"max_tiles": 1}


def test_mvbench_prompt_is_the_published_one_for_files_and_for_folders_of_frames(mvbench) -> None:
    _, items, folder = mvbench
    lines = "\n".join(f"Frame{i}: <image>" for i in range(1, 17))
    for item in items:
        name = item.group.lower().replace(" ", "_").replace("-", "_")
        record = json.loads((folder / "json" / f"{name}.json").read_text())[0]
        options = "".join(f"\n({letter}) {text}" for letter, text in zip("ABCD", record["candidates"], strict=False))
        question = f"Question: {record['question']}\nOptions:{options}\nOnly give the best option."
        assert shown(item) == f"{lines}\n{CAREFULLY}\n{question}", item.group
        assert item.gold.endswith(f") {record['answer']}")
    folders = [item for item in items if item.messages[0]["content"][0]["type"] == "text"]
    assert [item.group for item in folders] == ["Episodic Reasoning"]


def test_mvbench_takes_the_published_frames(mvbench) -> None:
    decord = pytest.importorskip("decord")

    _, items, _ = mvbench
    by_task = {item.group: item for item in items}
    video = by_task["Action Sequence"].messages[0]["content"][0]
    assert (video["clip"], video["frames"]) == ((4.0, 8.0), 16)  # the bound of the record
    every = [frame.tobytes() for frame in decord.VideoReader(video["path"]).get_batch(range(64)).asnumpy()]
    expected = [every[i] for i in mvbench_frame_indices((4.0, 8.0), 8.0, 63)]
    assert [frame.tobytes() for frame in frames_of(by_task["Action Sequence"])] == expected
    numbers = mvbench_frame_indices((4.0, 8.0), 3.0, 24, first_idx=1)
    names = [path.name for path in check.images_of(by_task["Episodic Reasoning"])]
    assert names == [f"{number:05d}.jpg" for number in numbers]


def test_mvbench_scores(mvbench) -> None:
    table, items, _ = mvbench
    right, wrong = [item.gold for item in items], [f"({'A' if item.gold[1] != 'A' else 'B'})" for item in items]
    for replies, upstream, fixed in ((right, 100, 100), (wrong, 0, 0), ([""] * 20, 100, 0)):
        for compat, value in (("upstream", upstream), ("fixed", fixed)):
            found = check.metrics(table, items, replies, compat)
            assert (found[0].value, found[0].n_scored, len(found)) == (value, 20, 21)


def test_mvbench_refuses_short_downloads_and_missing_videos(tmp_path: Path) -> None:
    folder = make_mini("MVBench", tmp_path / "m", n=1)
    (folder / "json" / "moving_count.json").write_text("[]")
    with pytest.raises(DataError, match=r"short download.*Moving Count: 0 of 1"):
        load_items(load_benchmark("MVBench"), folder)
    next((folder / "video" / "sta" / "sta_video").iterdir()).unlink()
    with pytest.raises(DataError, match=r"action_localization.json:0: image .* is missing"):
        load_items(load_benchmark("MVBench"), folder)


def test_videomme_prompt_scores_and_bad_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, items = check.mini("Video-MME", tmp_path / "m", n=3)
    record = pq.read_table(tmp_path / "m" / "videomme" / "test-00000-of-00001.parquet").to_pylist()[0]
    lines = "\n".join(f"Frame{i}: <image>" for i in range(1, 17))
    question = "\n".join([record["question"], *record["options"]])
    assert shown(items[0]) == f"{lines}\n{SELECT}{question}\nThe best answer is:"
    assert [item.group for item in items] == ["short"] * 3 + ["medium"] * 3 + ["long"] * 3
    assert len({item.meta["cluster"] for item in items}) == 3  # questions on one video are not independent
    wrong = ["ABCD"[("ABCD".index(item.gold) + 1) % 4] for item in items]
    for replies, value in (([f"The answer is {i.gold}." for i in items], 100), (wrong, 0), ([""] * 9, 0)):
        assert [check.metrics(table, items, replies, compat)[0].value for compat in ("upstream", "fixed")] == [
            value
        ] * 2
    path = tmp_path / "m" / "videomme" / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([{**record, "answer": "E"}]), path)
    with pytest.raises(DataError, match="answer 'E'"):
        load_items(table, tmp_path / "m")
    path.write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match="cannot be read"):
        load_items(table, tmp_path / "m")


@pytest.mark.parametrize("name", ["MVBench", "Video-MME"])
def test_the_same_seed_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    first, again, other = (make_mini(name, tmp_path / str(i), seed=seed) for i, seed in enumerate((5, 5, 6)))
    assert check.digest(first) == check.digest(again) != check.digest(other)


def test_a_video_of_the_miniature_shows_what_is_asked(tmp_path: Path) -> None:
    """The first and last frames of a movement differ as its direction says."""
    import numpy as np

    _, items = check.mini("Video-MME", tmp_path / "m", n=3)
    first, *_, last = [
        np.asarray(f).min(axis=2) < 160 for f in load_video(items[0].messages[0]["content"][0]["path"], 32)
    ]
    rows, columns = (np.argwhere(frame).mean(axis=0) for frame in (first, last))
    step = columns - rows  # (down, right) of the shape's middle
    way = ["left", "right", "up", "down"]["ABCD".index(items[0].gold)]
    moved = {"left": -step[1], "right": step[1], "up": -step[0], "down": step[0]}
    assert max(moved, key=lambda name: moved[name]) == way
