"""Twenty drawn pictures of a colored shape as messages, CSV and a `datasets` folder; more of the kind are held back."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image, ImageDraw

COLORS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 70, 220), "yellow": (240, 220, 50)}
QUESTION = "What color is it?"
Example = tuple[str, str]
"""(file, color)"""


def draw(path: Path, number: int) -> Example:
    """Draw a shape of a color in a place of its own."""
    name, color = list(COLORS.items())[number % len(COLORS)]
    image = Image.new("RGB", (56, 56), "white")
    left, top = 2 + number % 5, 2 + number % 7
    shape = ImageDraw.Draw(image)
    (shape.ellipse if number % 2 else shape.rectangle)((left, top, left + 44, top + 42), fill=color)
    image.save(path)
    return path.name, name


def write_messages(file: Path, examples: Sequence[Example]) -> None:
    """Write records as chat models are given them: parts of a message."""
    lines = []
    for picture, color in examples:
        parts = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
        turns = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": color}]},
        ]
        lines.append(json.dumps({"messages": turns}) + "\n")
    file.write_text("".join(lines))


def write_csv(file: Path, examples: Sequence[Example]) -> None:
    """Write a table."""
    file.write_text("image,question,answer\n" + "".join(f"{p},{QUESTION},{c}\n" for p, c in examples))


def write_dataset(folder: Path, examples: Sequence[Example]) -> None:
    """Write what `Dataset.save_to_disk` writes: an Arrow stream with the pictures inside, its features, its state."""
    folder.mkdir()
    images = [{"bytes": (folder.parent / picture).read_bytes(), "path": picture} for picture, _ in examples]
    table = pa.table(
        {
            "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "question": [QUESTION] * len(examples),
            "answer": [color for _, color in examples],
        }
    )
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    text = {"dtype": "string", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "question": text, "answer": text}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "1", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


def write_world(home: Path) -> None:
    """Draw 20 pictures and 12 that are held back, and write them in all forms."""
    home.mkdir(parents=True, exist_ok=True)
    examples = [draw(home / f"picture {number}.png", number) for number in range(20)]
    held_back = [draw(home / f"held back {number}.png", number + 21) for number in range(12)]
    write_messages(home / "shapes.jsonl", examples[:8])
    write_csv(home / "shapes.csv", examples[8:14])
    write_dataset(home / "shapes-set", examples[14:])
    write_csv(home / "shapes-test.csv", held_back)
