"""Miniatures of MM-Vet, MathVista, RealWorldQA and OCRBench."""

import json
import random
from io import BytesIO
from pathlib import Path
from typing import Any

from vlm.eval.benchmark import Benchmark
from vlm.eval.mini.draw import COLORS, SHAPES, Picture, bars, save, shapes, words, write_lines
from vlm.eval.mini.questions import jsonl

NAMES = ("Ada", "Bo", "Cy", "Dan", "Eve", "Fay")


def _bars(rng: random.Random) -> dict[str, int]:
    return dict(zip(rng.sample(NAMES, 4), rng.sample(range(5, 100), 4), strict=True))


def _thing(rng: random.Random) -> tuple[str, str]:
    return rng.choice(list(COLORS)), rng.choice(SHAPES)


def make_mmvet(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions (usually 20) about shapes, words and charts, with their capabilities."""
    rows, answers = [], {}
    n = n or 20
    for k in range(n):
        name = f"v1_{k}.png"
        if k % 3 == 0:
            color, shape = _thing(rng)
            picture, question, answer = shapes([(color, shape)]), "What is in the picture?", f"a {color} {shape}"
            needs = ["rec"]
        elif k % 3 == 1:
            word = rng.choice(["BREAD", "RIVER", "TRAIN"])
            picture, question, answer, needs = words(word), "What does the sign say?", word.lower(), ["ocr"]
        else:
            values = _bars(rng)
            first, second = list(values)[:2]
            picture, question = bars(values), f"What are the sum and the difference of {first} and {second}?"
            answer = f"{values[first] + values[second]} <AND> {abs(values[first] - values[second])}"
            needs = ["ocr", "spat", "math"]
        save(picture, folder / "images" / name)
        rows.append({"question_id": k, "image": name, "text": question, "category": "conv"})
        about = {"imagename": name, "question": question, "answer": answer, "imagesource": "generated"}
        answers[f"v1_{k}"] = about | {"capability": needs}
    write_lines(folder / "llava-mm-vet.jsonl", jsonl(rows))
    write_lines(folder / "mm-vet.json", json.dumps(answers, indent=1))
    return {"all": n}


def make_mathvista(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions (usually 20) about bar charts: options, an integer, and a number with one decimal in turn."""
    rows, n = {}, n or 20
    for k in range(n):
        values = _bars(rng)
        first, second = list(values)[:2]
        name = f"images/{k + 1}.jpg"
        save(bars(values), folder / name)
        total = values[first] + values[second]
        record: dict[str, Any] = {"pid": str(k + 1), "image": name, "choices": None, "unit": None, "precision": None}
        if k % 3 == 0:
            top = max(values, key=lambda entry: values[entry])
            record |= {"question": "Which bar is the highest?", "choices": list(values), "answer": top}
            record |= {"question_type": "multi_choice", "answer_type": "text"}
            options = "\n".join(f"({chr(65 + i)}) {choice}" for i, choice in enumerate(values))
            hint, end = "provide the correct option letter, e.g., A, B, C, D,", f"\nChoices:\n{options}"
        elif k % 3 == 1:
            record |= {"question": f"What is the sum of {first} and {second}?", "answer": str(total)}
            record |= {"question_type": "free_form", "answer_type": "integer"}
            hint, end = "provide the final value, e.g., 1, 2, 3,", ""
        else:
            record |= {"question": f"What is the mean of {first} and {second}?", "answer": str(round(total / 2, 1))}
            record |= {"question_type": "free_form", "answer_type": "float", "precision": 1.0}
            hint, end = "provide the final value, e.g., 1.2, 1.3, 1.4,", ""
        query = f"Hint: Please answer the question and {hint} at the end.\nQuestion: {record['question']}{end}"
        rows[record["pid"]] = record | {"query": query, "metadata": {"split": "testmini"}}
    write_lines(folder / "annot_testmini.json", json.dumps(rows, indent=1))
    return {"testmini": n}


def make_realworldqa(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions (usually 20), with options and with a short answer in turn."""
    rows, n = [], n or 20
    for k in range(n):
        color, shape = _thing(rng)
        if k % 2:
            question, answer = f"What color is the {shape}? Please answer directly with a single word or number.", color
        else:
            options = "\n".join(f"{letter}. {name}" for letter, name in zip("ABC", SHAPES, strict=True))
            question = f"Which shape is in the image?\n{options}\n"
            question += "Please answer directly with only the letter of the correct option and nothing else."
            answer = "ABC"[SHAPES.index(shape)]
        rows.append({"image": _embedded(shapes([(color, shape)])), "question": question, "answer": answer.capitalize()})
    _write(folder / "data" / "test-00000-of-00002.parquet", rows[: n // 2])
    _write(folder / "data" / "test-00001-of-00002.parquet", rows[n // 2 :])
    return {"all": n}


def make_ocrbench(benchmark: Benchmark, folder: Path, rng: random.Random, n: int | None) -> dict[str, int]:
    """Write `n` questions (usually 2) of each type: words, digits, chart values, formulas."""
    rows, n = [], n or 2
    groups = list(benchmark.counts.groups) if benchmark.counts else []
    for kind in groups:
        for _ in range(n):
            word, digits = rng.choice(["Bread", "River", "Train"]), str(rng.randrange(1000, 10000))
            dataset, picture, question, answer = "IIIT5K", words(word), "what is written in the image?", word.upper()
            if kind == "Digit String Recognition":
                dataset, picture, question, answer = "ORAND", words(digits), "what is the number in the image?", digits
            elif kind == "Handwritten Mathematical Expression Recognition":
                dataset, picture = "HME100k", words(f"{digits} + x")
                question = "Please write out the expression of the formula in the image using LaTeX format."
                answer = f"{digits} + x"
            elif "VQA" in kind or kind == "Key Information Extraction":
                values = _bars(rng)
                first = next(iter(values))
                dataset, picture, answer = "ChartQA", bars(values), str(values[first])
                question = f"What is the value of {first}? Answer this question using the text in the image directly."
            row = {"dataset": dataset, "question": question, "question_type": kind, "answer": [answer]}
            rows.append(row | {"image": _embedded(picture)})
    _write(folder / "data" / "test-00000-of-00001.parquet", rows)
    return dict.fromkeys(groups, n)


def _embedded(picture: Picture) -> dict[str, Any]:
    content = BytesIO()
    picture.save(content, format="PNG")
    return {"bytes": content.getvalue(), "path": None}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([(key, image if key == "image" else _type(value)) for key, value in rows[0].items()])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _type(value: Any) -> Any:
    import pyarrow as pa

    return pa.list_(pa.string()) if isinstance(value, list) else pa.string()


MINIATURES = {
    "MM-Vet": make_mmvet,
    "MathVista": make_mathvista,
    "OCRBench": make_ocrbench,
    "RealWorldQA": make_realworldqa,
}
