"""Choose the samples that the page shows, and shrink their media to thumbnails inside the page."""

import base64
import hashlib
import io
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image, ImageDraw

from vlm.core.errors import MediaError
from vlm.core.home import runs
from vlm.core.sample.media import load_image, load_video
from vlm.eval.measures.rows import ResultRow
from vlm.eval.saved.evaluations import Evaluation, SampleRow, asked_of

THUMBNAIL, QUALITY, IMAGES, TEXT, AROUND = 320, 72, 8, 3000, 120
"""Longest side in px, JPEG quality, most images of a sample, most characters of a prompt or completion, and those
around a needle."""


class BrowserSample(TypedDict):
    """One item of one run in the sample browser; `images` name thumbnails, `more` counts images left out.

    The first `asked` of them are what the question is about, `needles` the texts of the prompt that it is about, where
    the set says it. `place` is the evaluation's folder, below runs/ where it lies there.
    """

    place: str
    asked: int
    needles: list[str]
    benchmark: str
    run: str
    id: str
    group: str
    outcome: str
    verdict: str
    differs: bool
    score: float | None
    strict: float | None
    prompt: str
    completion: str
    extracted: str
    gold: Any
    why: str
    images: list[str]
    files: list[str]
    more: int


class ShownCount(TypedDict):
    """How many samples of a benchmark are shown, of how many."""

    benchmark: str
    title: str
    shown: int
    of: int


class SampleBrowser(TypedDict):
    """The samples, one per run and item, the images that they share (name -> data URL), and counts per benchmark."""

    samples: list[BrowserSample]
    images: dict[str, str]
    shown: list[ShownCount]


def choose_samples(evaluations: Sequence[Evaluation], per_benchmark: int = 60, seed: int = 0) -> SampleBrowser:
    """Choose samples of each benchmark, and read their media.

    There are at most `per_benchmark`, divided over the benchmark's runs, which show the same items so that they
    compare. A quarter are items without an answer or with different scores by the two scorers, half are wrong, the rest
    right, as far as there are such; drawn with `seed`.
    """
    groups: dict[str, list[Evaluation]] = defaultdict(list)
    for e in evaluations:
        groups[e.summary["benchmark"]].append(e)
    samples: list[BrowserSample] = []
    images: dict[str, str] = {}
    shown: list[ShownCount] = []
    for name, group in groups.items() if per_benchmark else ():
        chosen = _choose(group, max(1, per_benchmark // len(group)), f"{seed}/{name}")
        before = len(samples)
        for e in group:
            samples += [_sample(e, row, images) for row in e.rows if row.id in chosen]
        total = sum(len(e.rows) for e in group)
        shown.append(
            {"benchmark": name, "title": group[0].summary["title"], "shown": len(samples) - before, "of": total}
        )
    return {"samples": samples, "images": images, "shown": shown}


def _choose(group: Sequence[Evaluation], n: int, seed: str) -> set[str]:
    rows = list(group[0].rows)  # data order; every run of a benchmark holds the same ids
    random.Random(seed).shuffle(rows)
    special = [r.id for r in rows if r.score is None] + [r.id for r in rows if r.score != r.strict]
    plain = [(r.id, r.score) for r in rows if r.score is not None and r.score == r.strict]
    wrong = [id_ for id_, score in plain if score < 0.5]
    right = [id_ for id_, score in plain if score >= 0.5]
    chosen = dict.fromkeys(special[: n // 4] + wrong[: n // 2])
    for id_ in right + wrong + special:
        if len(chosen) >= n:
            break
        chosen[id_] = None
    return set(chosen)


def _sample(e: Evaluation, row: SampleRow, images: dict[str, str]) -> BrowserSample:
    full = e.read(row.offset)
    paths, asked = full["images"], asked_of(full)
    first = [n for n in asked if isinstance(n, int)]
    needles = [text for text in asked if isinstance(text, str)]
    order = [*first, *(n for n in range(len(paths)) if n not in first)][:IMAGES]
    box = box_of(full)
    thumbnails = [_thumbnail(paths[n], images, box) for n in order]
    return {
        "place": e.folder.relative_to(runs()).as_posix() if e.folder.is_relative_to(runs()) else str(e.folder),
        "asked": min(len(first), IMAGES) or int(box is not None),
        "needles": needles,
        "benchmark": e.summary["title"],
        "run": f"{e.summary['model']} · {e.label}",
        "id": row.id,
        "group": row.group,
        "outcome": row.outcome,
        "verdict": _verdict(row),
        "differs": row.score != row.strict,
        "score": row.score,
        "strict": row.strict,
        "prompt": _cut(full["prompt"], needles),
        "completion": _cut(full["completion"] or ""),
        "extracted": full["extracted"],
        "gold": full["gold"],
        "why": full["why"],
        "images": thumbnails,
        "files": [Path(paths[n]).name for n in order],
        "more": max(0, len(paths) - IMAGES),
    }


def _verdict(row: SampleRow) -> str:
    if row.score is None:
        return "unscored"
    return "right" if row.score >= 1 else "wrong" if row.score <= 0 else "partial"


Box = tuple[float, float, float, float]


def box_of(row: ResultRow) -> Box | None:
    """Return the reference box of a grounding question in px of its only picture; None for another question."""
    gold, size = row["gold"], row["meta"].get("hw")
    good = isinstance(gold, list) and len(gold) == 4 and all(isinstance(x, int | float) for x in gold)
    return (gold[0], gold[1], gold[2], gold[3]) if good and size and len(row["images"]) == 1 else None


def _cut(text: str, needles: Sequence[str] = ()) -> str:
    """Return a text without its middle where it is long; what surrounds a needle in the middle stays."""
    if len(text) <= TEXT:
        return text
    half = TEXT // 2
    middle, kept, left = text[half:-half], "", len(text) - TEXT
    for needle in needles:
        if (at := middle.find(needle)) >= 0:
            near = middle[max(0, at - AROUND) : at + len(needle) + AROUND]
            kept, left = f"{kept}… {near} …\n\n", left - len(near)
    return f"{text[:half]}\n\n{kept}… {max(0, left):,} characters left out …\n\n{text[-half:]}"


def _thumbnail(path: str, images: dict[str, str], box: Box | None = None) -> str:
    """Return the name of the thumbnail in `images`, added when new; "" when the medium cannot be read any more."""
    name = hashlib.sha256(f"{path}{box or ''}".encode()).hexdigest()[:12]
    if name not in images:
        try:
            images[name] = data_url(_marked(still(Path(path)), box))
        except (MediaError, OSError):
            return ""
    return name


def _marked(image: Image.Image, box: Box | None) -> Image.Image:
    """Return the image with a box drawn on it, whose line is visible in a thumbnail."""
    if box is None:
        return image
    image = image.copy()
    pen = ImageDraw.Draw(image)
    width = max(2, max(image.size) // 90)
    for color, outset in (("white", width), ("#d55e00", 0)):
        left, top, right, bottom = box
        corners = (left - outset, top - outset, max(left, right) + outset, max(top, bottom) + outset)
        pen.rectangle(corners, outline=color, width=width + outset)
    return image


def still(path: Path) -> Image.Image:
    """Return the image, or the four quarter points of a video side by side.

    Raises:
        MediaError: It is missing or cannot be decoded.
    """
    if not path.is_dir() and path.suffix.lower() not in {".mp4", ".avi", ".mkv", ".webm", ".mov", ".gif"}:
        return load_image(path)
    frames = load_video(path, 4)
    strip = Image.new("RGB", (sum(f.width for f in frames), max(f.height for f in frames)))
    left = 0
    for frame in frames:
        strip.paste(frame, (left, 0))
        left += frame.width
    return strip


def data_url(image: Image.Image) -> str:
    """Return a thumbnail of an image as a data URL."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
