"""Questions about videos: MVBench (20 tasks) and Video-MME."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.home import read_json
from vlm.core.sample.media import FOLDER_FPS, IMAGE_SUFFIXES, frame_indices
from vlm.core.sample.records import Message, text, video
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import FETCH, CountTokens, Item, Items, get, inside, user
from vlm.eval.loaders.parquet import parquet_rows
from vlm.eval.measures.text import Compat

VIDEO_SUFFIXES = (".mp4", ".MP4", ".mkv")
"""Endings under which Video-MME's harness looks for a video."""

ALWAYS = (-100_000.0, 100_000.0)
"""The published bound, in seconds, of a video that has none."""


def mvbench_frame_indices(
    bound: Sequence[float] | None,
    fps: float,
    max_frame: int,
    first_idx: int = 0,
    num_segments: int = 16,
    *,
    compat: Compat = "upstream",
) -> list[int]:
    """Choose the middle frames of equal parts of a video, or of its part within a bound, as V2PE does.

    Args:
        bound: Start and end in seconds; None for the whole video.
        fps: Frames a second.
        max_frame: Number of the last frame.
        first_idx: Number of the first frame.
        num_segments: How many parts, so how many frames.
        compat: The same in both modes.
    """
    start, end = (bound or ALWAYS)[:2]
    return frame_indices(max_frame + 1, fps, num_segments, (max(start, first_idx / fps), end))


def mvbench_qa_template(data: Mapping[str, Any], *, compat: Compat = "upstream") -> dict[str, str]:
    """Return the `question` with its lettered candidates, and the `answer` as `(B) text`, as V2PE does.

    upstream: an answer that is no candidate is `(@) text`, which no reply can match. fixed: it is refused.

    Raises:
        DataError: fixed, for an answer that is no candidate.
    """
    candidates, answer = data["candidates"], data["answer"]
    places = [i for i, candidate in enumerate(candidates) if candidate == answer]
    if compat == "fixed" and not places:
        raise DataError(f"the answer {answer!r} is no candidate", expected=f"one of {candidates}")
    lines = [f"({chr(65 + i)}) {candidate}" for i, candidate in enumerate(candidates)]
    question = "\n".join([f"Question: {data['question']}", "Options:", *lines, ""]).rstrip()
    return {"question": question, "answer": f"({chr(65 + places[-1]) if places else '@'}) {answer}"}


def video_message(path: Path, question: str, segments: int, clip: tuple[float, float] | None = None) -> list[Message]:
    """Make one user message: `Frame1: <image>` lines of `segments` frames, then the question."""
    return [{"role": "user", "content": [{**video(path, clip), "frames": segments}, text("\n" + question)]}]


def load_mvbench(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `json/<task>.json` (video, question, candidates, answer, start and end), videos below `video/<set>/`.

    The group is the task. Of a video that is a folder of frames, those are shown that the published rule names.
    Source: the V2PE evaluator.
    """
    items, segments = Items(), benchmark.options["segments"]
    for task, about in benchmark.options["tasks"].items():
        path = folder / "json" / f"{task.lower().replace(' ', '_').replace('-', '_')}.json"
        for row, record in enumerate(read_json(path, fix=FETCH)):
            where = f"{path}:{row}"
            file = inside(folder / "video" / about["videos"], get(record, "video", str, where), where)
            clip = _clip(record, where) if about["bound"] else None
            for key, kind in (("question", str), ("candidates", list), ("answer", str)):
                get(record, key, kind, where)
            qa = mvbench_qa_template(record)
            question = benchmark.prompt["instruction"] + "\n" + qa["question"] + benchmark.prompt["suffix"]
            shown = _frames(file, clip, segments) if about.get("frames") else []
            if shown:
                lines = [f"Frame{i}: <image>" for i in range(1, segments + 1)]
                messages = user("\n".join([*lines, question]), shown, where)
            else:
                shown, messages = [file], video_message(file, question, segments, clip)
            item = Item(f"{task}/{row}", messages, qa["answer"], task, {"cluster": record["video"]})
            items.add(item, where=where, images=shown)
    return items.finish(benchmark, folder)


def load_videomme(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `videomme/test-*.parquet` (videoID, question_id, duration, question, options, answer), `data/<videoID>.mp4`.

    The group is the duration. Source: lmms-eval.
    """
    items = Items()
    columns = ("videoID", "question_id", "duration", "question", "options", "answer")
    for where, record in parquet_rows(folder, "videomme/test-*.parquet", columns):
        stem = inside(folder / "data", get(record, "videoID", str, where), where)
        files = [stem.with_name(stem.name + suffix) for suffix in VIDEO_SUFFIXES]
        file = next((path for path in files if path.is_file()), files[0])
        options, answer = get(record, "options", list, where), get(record, "answer", str, where)
        if len(options) != 4 or answer not in tuple("ABCD"):
            raise DataError(f"{where}: {len(options)} options, answer {answer!r}", expected="four options, A to D")
        lines = [get(record, "question", str, where), *options]
        question = benchmark.prompt["instruction"] + "\n".join(lines) + benchmark.prompt["suffix"]
        messages = video_message(file, question, benchmark.options["segments"])
        number, group = get(record, "question_id", str, where), get(record, "duration", str, where)
        items.add(Item(number, messages, answer, group, {"cluster": record["videoID"]}), where=where, images=[file])
    return items.finish(benchmark, folder)


def _clip(record: dict[str, Any], where: str) -> tuple[float, float]:
    return get(record, "start", (int, float), where), get(record, "end", (int, float), where)


def _frames(folder: Path, clip: tuple[float, float] | None, segments: int) -> list[Path]:
    """Return the files to show of a video that is a folder of frames, three a second, numbered from 1; [] of none."""
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []
    if not names:
        return []
    numbers = mvbench_frame_indices(clip, FOLDER_FPS, len(names), first_idx=1, num_segments=segments)
    return [folder / f"{number:05d}{Path(names[0]).suffix}" for number in numbers]


LOADERS = {"mvbench": load_mvbench, "videomme": load_videomme}
