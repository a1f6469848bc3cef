"""Photographs, scans and drawings with our own questions and answers (`photographs.yaml`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from vlm.core.config import Strict, load_yaml, parse
from vlm.core.errors import DataError
from vlm.core.sample.media import opened_image
from vlm.core.synth.vqa_records import vqa_record, write_jsonl

if TYPE_CHECKING:
    from vlm.core.organize.organize_set import OrganizeOptions

LONGEST_SIDE = 512
QUESTIONS = Path(__file__).with_name("photographs.yaml")


class Photograph(Strict):
    """A picture: the entry it comes from, its file, and its turns.

    `haystack`: the split of a haystack that may show it as a distractor; null where it shows writing.
    """

    source: str
    file: str
    haystack: Literal["train", "test"] | None
    turns: dict[str, str]


class _Photographs(Strict):
    photographs: dict[str, Photograph]


def load_photographs() -> dict[str, Photograph]:
    """Load the table as name -> photograph, in the order of the file."""
    return parse(load_yaml(QUESTIONS), _Photographs, where=str(QUESTIONS)).photographs


def organize_photographs(sources: dict[str, Path], out: Path, options: "OrganizeOptions") -> None:
    """Write images/<name>.jpg (longest side at most 512 px, on white where transparent) and train.jsonl.

    Raises:
        DataError: A picture is missing.
    """
    (out / "images").mkdir()
    records = []
    for name, photograph in load_photographs().items():
        path = sources[photograph.source] / photograph.file
        if not path.is_file():
            raise DataError(f"{path} is missing", fix=f"vlm download {photograph.source}")
        with opened_image(path) as opened:
            rgba = opened.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
        picture.save(out / "images" / f"{name}.jpg", quality=92)
        turns = list(photograph.turns.items())
        records.append(vqa_record(f"photographs/{name}", f"images/{name}.jpg", turns, haystack=photograph.haystack))
    write_jsonl(out / "train.jsonl", records)
