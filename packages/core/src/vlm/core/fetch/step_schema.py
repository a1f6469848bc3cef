"""What becomes of a download: the steps of `vlm data organize`, as data.

    organize:
      - unpack: {archives: train2017.zip}
      - link: {from: coco/train2017, to: playground/data/coco/train2017}
      - jpeg: {folder: ocr_vqa/images}
      - records: {from: llava/mix.json, to: llava/mix.jsonl}

Paths are relative to the entry's folder, those of `link: {from}` and `records: {beside}` to `dataset/`. Every step can
be run again; one that was cut short gives the same files.
"""

from typing import Any

from pydantic import Field, model_validator

from vlm.core.config import Strict
from vlm.core.paths import InsidePath


class Unpack(Strict):
    """Archives, unpacked into a folder, where `{stem}` is the archive's name up to its first period. A single top
    folder of that folder's name is not doubled, because publishers do it either way. `parts`: the matches are the
    pieces of one archive, in the order of their names."""

    archives: str
    into: InsidePath = ""
    parts: bool = False
    members: dict[str, InsidePath] = Field(default_factory=lambda: {"*": ""})


class Link(Strict):
    """A relative symbolic link to a file or folder of another set: nothing is copied. One that a person made, or a real
    folder, stays."""

    source: InsidePath = Field(alias="from")
    to: InsidePath


class Jpeg(Strict):
    """Every GIF and PNG of a folder gets a JPEG of quality 95 beside it, as the published lists name them; the
    originals stay."""

    folder: InsidePath
    suffixes: tuple[str, ...] = (".gif", ".png")


class MiddleFrame(Strict):
    """The middle frame of every video that fits a pattern, as `into`/<stem>.png."""

    videos: str
    into: InsidePath


class Parquet(Strict):
    """The pictures of a column of parquet files, as files: `into`/<row number>.<suffix of their format>, numbered over
    all files in the order of their names."""

    files: str
    into: InsidePath
    column: str = "image"


class Records(Strict):
    """Annotation, each record checked: its form, and that its files are there and readable. What cannot be used goes
    to the ledger.

    `to`: a JSONL file of the records that can be used, each with an id (a JSON list in `from` is streamed); without it
    the file is only checked, and stays as published. `images`: the folder that paths in records start from. `jpg`: a
    path that is not there, but whose `.jpg` twin is, is corrected in `to`. `beside`: the source lies in another set,
    below `dataset/`.
    """

    source: InsidePath = Field(alias="from")
    to: InsidePath | None = None
    images: InsidePath = ""
    jpg: bool = False
    beside: bool = False


class Step(Strict):
    """One of the above; the key says which."""

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
        """What stands under the key."""
        return getattr(self, self.kind)
