"""Miniature of MMMU: the 30 subjects as parquet files with the images inside, open questions, several images."""

import json
import random
from io import BytesIO
from pathlib import Path
from typing import Any

from vlm.eval.benchmark import Benchmark
from vlm.eval.mini.draw import COLORS, SHAPES, Picture, shapes, words, write_lines


def make_mmmu(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions (usually 1) of each subject: shapes with options, numbers, two pictures to compare."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, split, answers, made = n or 1, benchmark.options["split"], {}, 0
    subjects = list(benchmark.counts.groups) if benchmark.counts else []
    for subject in subjects:
        rows = []
        for k in range(1, n + 1):
            row, pictures, answer = (_choice, _number, _two)[made % 3](rng)
            made += 1
            row |= {"id": f"{split}_{subject}_{k}", "explanation": "", "img_type": "['Diagrams']", "subfield": subject}
            row |= {"topic_difficulty": "Easy", "answer": "?" if benchmark.server_scored else str(answer)}
            cells = [{"bytes": _png(picture), "path": f"{row['id']}_{i}.png"} for i, picture in enumerate(pictures, 1)]
            rows.append(row | {f"image_{i + 1}": cells[i] if i < len(cells) else None for i in range(7)})
            kind = "multiple-choice" if row["question_type"] == "multiple-choice" else "short-answer"
            answers[row["id"]] = {"question_type": kind, "ground_truth": answer}
        path = folder / subject / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        names = [name for name in rows[0] if not name.startswith("image_")]
        schema = pa.schema([(name, pa.string()) for name in names] + [(f"image_{i}", image) for i in range(1, 8)])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    if not benchmark.server_scored:
        write_lines(folder / benchmark.options["answers"], json.dumps(answers, indent=4) + "\n")
    return dict.fromkeys(subjects, n)


Made = tuple[dict[str, Any], list[Picture], str | list[str]]
"""A row, its pictures, the answer(s)."""


def _png(picture: Picture) -> bytes:
    content = BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def _choice(rng: random.Random) -> Made:
    color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
    options = rng.sample(SHAPES, 3)
    row = {"question": "<image 1> Which shape is shown?", "options": str(options), "question_type": "multiple-choice"}
    return row, [shapes([(color, shape)])], "ABC"[options.index(shape)]


def _number(rng: random.Random) -> Made:
    number = str(rng.randrange(100, 1000))
    row = {"question": "Which number is written in <image 1>?", "options": "[]", "question_type": "open"}
    return row, [words(number)], [number, f"{number}.0"]


def _two(rng: random.Random) -> Made:
    colors, shape = rng.sample(list(COLORS), 2), rng.choice(SHAPES)
    options = rng.sample([f"from {colors[0]} to {colors[1]}", f"from {colors[1]} to {colors[0]}"], 2)
    row = {"question": "How does the color change from <image 1> to <image 2>?", "options": str(options)}
    gold = "AB"[options.index(f"from {colors[0]} to {colors[1]}")]
    return row | {"question_type": "multiple-choice"}, [shapes([(color, shape)]) for color in colors], gold


MINIATURES = {"MMMU": make_mmmu, "MMMU-test": make_mmmu}
