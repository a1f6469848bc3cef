"""Miniatures of MVBench (20 tasks) and Video-MME: short videos of a shape that moves or changes, or of several."""

import json
import random
from pathlib import Path
from typing import Any

from vlm.eval.benchmark import Benchmark
from vlm.eval.mini.clips import STEPS, moving, save_frames, save_video, still
from vlm.eval.mini.draw import COLORS, SHAPES, Picture, write_lines

FPS, FOLDER_FPS, SECONDS = 8, 3, 4
"""Frames a second of a file and of a folder of frames; length of every video."""

Question = tuple[str, list[str], str]
"""Question, candidates, answer."""


def scene(rng: random.Random, kind: int, n_frames: int) -> tuple[list[Picture], Question]:
    """Draw frames, and ask by `kind` about direction, change of color, number, or shape."""
    color, other = rng.sample(list(COLORS), 2)
    shape = rng.choice(SHAPES)
    if kind == 0:
        way = rng.choice(list(STEPS))
        question = f"In which direction does the {shape} move?"
        return moving(color, shape, way, n_frames), (question, list(STEPS), way)
    if kind == 1:
        half = n_frames // 2
        frames = still([(color, shape)], half) + still([(other, shape)], n_frames - half)
        colors = [color, *rng.sample([name for name in COLORS if name not in (color, other)], 2), other]
        return frames, (f"What is the color of the {shape} at the end?", rng.sample(colors, 4), other)
    if kind == 2:
        number = rng.randint(1, 4)
        question = f"How many {shape}s are in the video?"
        return still([(color, shape)] * number, n_frames), (question, ["1", "2", "3", "4"], str(number))
    return moving(color, shape, "right", n_frames), ("Which shape moves in the video?", list(SHAPES), shape)


def make_mvbench(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions (usually 1) of each task; where it has bounds, something else happens outside of them."""
    n = n or 1
    for number, (task, about) in enumerate(benchmark.options["tasks"].items()):
        rows, fps = [], FOLDER_FPS if about.get("frames") else FPS
        for k in range(n):
            frames, (question, candidates, answer) = scene(rng, (number + k) % 4, fps * SECONDS)
            record: dict[str, Any] = {"question": question, "candidates": candidates, "answer": answer}
            if about["bound"]:
                before, _ = scene(rng, 0, fps * SECONDS)
                frames = before + frames
                record |= {"start": float(SECONDS), "end": 2.0 * SECONDS}
            stem = f"{task.lower().replace(' ', '_')}_{k}"
            name = stem if about.get("frames") else f"{stem}.mp4"
            save = save_frames if about.get("frames") else save_video
            save(frames, folder / "video" / about["videos"] / name)
            rows.append({"video": name, **record})
        write_lines(folder / "json" / f"{task.lower().replace(' ', '_').replace('-', '_')}.json", json.dumps(rows))
    return dict.fromkeys(benchmark.options["tasks"], n)


def make_videomme(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions (usually 6) of each duration, three about each video, in parquet; `long` is only a name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, rows = n or 6, []
    groups = benchmark.counts.groups if benchmark.counts else {}
    for group in groups:
        for k in range(n):
            video = f"{group}{k // 3}"
            if k % 3 == 0:
                color, shape, way = rng.choice(list(COLORS)), rng.choice(SHAPES), rng.choice(list(STEPS))
                save_video(moving(color, shape, way, FPS * SECONDS), folder / "data" / f"{video}.mp4")
            question, names, answer = [
                (f"In which direction does the {shape} move?", list(STEPS), way),
                ("What is the color of the shape?", _four(rng, list(COLORS), color), color),
                ("Which shape is in the video?", [*SHAPES, "star"], shape),
            ][k % 3]
            options = [f"{letter}. {name}" for letter, name in zip("ABCD", names, strict=True)]
            row = {"video_id": video, "duration": group, "domain": "Knowledge", "sub_category": "Geography"}
            row |= {
                "url": "",
                "videoID": video,
                "question_id": f"{video}-{k % 3 + 1}",
                "task_type": "Attribute Perception",
            }
            rows.append(row | {"question": question, "options": options, "answer": "ABCD"[names.index(answer)]})
    path = folder / "videomme" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return dict.fromkeys(groups, n)


def _four(rng: random.Random, names: list[str], right: str) -> list[str]:
    """Choose four of the names in random order, the right one among them."""
    four = [*rng.sample([name for name in names if name != right], 3), right]
    return rng.sample(four, 4)


MINIATURES = {"MVBench": make_mvbench, "Video-MME": make_videomme}
