"""Handwritten digits as pictures of 64x64 pixels: "Which digit is this?" answered by a word."""

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vlm.core.errors import DataError
from vlm.core.synth.vqa_records import NUMBER_WORDS, vqa_record, write_jsonl

if TYPE_CHECKING:
    from vlm.core.organize.organize_set import OrganizeOptions

TRAIN = 1437
"""Training digits; the rest are test. The split is in file order, so that almost no writer is in both."""

SIDE = 64
QUESTION = "Which digit is this?"


def organize_digits(sources: dict[str, Path], out: Path, options: "OrganizeOptions") -> None:
    """Write images/0000.png … (dark ink on white, bicubic from 8x8), train.jsonl and test.jsonl.

    Raises:
        DataError: The table does not have 64 pixels and a label in each row.
    """
    with gzip.open(sources["scikit-learn"] / "digits.csv.gz", "rt") as f:
        table = np.loadtxt(f, delimiter=",")
    if table.ndim != 2 or table.shape[1] != 65:
        raise DataError(f"digits.csv.gz has shape {table.shape}", expected="64 pixels (0..16) and a label in each row")
    (out / "images").mkdir()
    records = []
    for i, row in enumerate(table):
        ink = Image.fromarray(np.uint8(255 - np.round(row[:64] * 255 / 16)).reshape(8, 8))
        ink.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(out / "images" / f"{i:04}.png")
        records.append(vqa_record(f"digits/{i:04}", f"images/{i:04}.png", [(QUESTION, NUMBER_WORDS[int(row[64])])]))
    write_jsonl(out / "train.jsonl", records[:TRAIN])
    write_jsonl(out / "test.jsonl", records[TRAIN:])
