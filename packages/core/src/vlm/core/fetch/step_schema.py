"""The steps from a download to its folder tree, as data: the `organize` list of a catalogue entry.

    organize:
      - unpack: {archives: train2017.zip}
      - link: {from: coco/train2017, to: playground/data/coco/train2017}
      - jpeg: {folder: ocr_vqa/images}
      - records: {from: llava/mix.json, to: llava/mix.jsonl}

Paths are relative to the entry's folder, those of `link: {from}` and `records: {beside}` to `dataset/`. Every step can
run again, and gives the same files after it was cut short.
"""

from typing import Any

from pydantic import Field, model_validator

from vlm.core.config import Strict
from vlm.core.paths import InsidePath


class Unpack(Strict):
    """Unpack archives into a folder, where `{stem}` is the archive's name up to its first period.

    A single top folder with the name of that folder is not doubled, because publishers do it either way. `parts`: the
    matches are the pieces of one archive, in the order of their names.
    """

    archives: str
    into: InsidePath = ""
    parts: bool = False
    members: dict[str, InsidePath] = Field(default_factory=lambda: {"*": ""})


class Link(Strict):
    """Make a relative symbolic link to a file or folder of another set; nothing is copied.

    A link that a person made, or a real folder, stays.
    """

    source: InsidePath = Field(alias="from")
    to: InsidePath


class Jpeg(Strict):
    """Put a JPEG of quality 95 beside every GIF and PNG of a folder, as the published lists name them.

    The originals stay.
    """

    folder: InsidePath
    suffixes: tuple[str, ...] = (".gif", ".png")


class MiddleFrame(Strict):
    """Save the middle frame of every video that matches a pattern, as `into`/<stem>.png."""

    videos: str
    into: InsidePath


class Parquet(Strict):
    """Save the pictures of a column of parquet files, as `into`/<row number>.<suffix of their format>.

    Rows are numbered over all files in the order of their names.
    """

    files: str
    into: InsidePath
    column: str = "image"


class Records(Strict):
    """Check each record of an annotation file: its form, and that its files exist and can be read.

    Records that cannot be used go to the ledger. `to`: a JSONL file of the usable records, each with an id (a JSON list
    in `from` is streamed); without it the file is only checked, and stays as published. `images`: the folder that paths
    in records start from. `jpg`: correct in `to` a path that does not exist, but whose `.jpg` twin does. `beside`: the
    source is in another set, below `dataset/`.
    """

    source: InsidePath = Field(alias="from")
    to: InsidePath | None = None
    images: InsidePath = ""
    jpg: bool = False
    beside: bool = False


class Step(Strict):
    """One of the steps above; the key says which."""

    unpack: Unpack | None = None
    link: Link | None = None
    jpeg: Jpeg | None = None
    middle_frame: MiddleFrame | None = None
    parquet: Parquet | None = None
    records: Records | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Step":
        if sum(value is not None for _, value in self) != 1:
            raise ValueError(f"must have exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def kind(self) -> str:
        """The key."""
        return next(name for name, value in self if value is not None)

    @property
    def rule(self) -> Any:
        """The settings under the key."""
        return getattr(self, self.kind)
