"""What the tests of organizing share: downloaded folders, entries, pictures and archives."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm.core.fetch.catalogue import Entry
from vlm.core.fetch.manifest import files_below, install
from vlm.core.home import dataset


def picture(color: int = 0, form: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(color).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize(size)
    (image.convert("P") if form == "GIF" else image).save(buffer, form)
    return buffer.getvalue()


def downloaded(name: str, files: dict[str, bytes]) -> Path:
    """The folder of a set as `vlm download` leaves it."""
    folder = dataset() / name
    staging = folder / ".partial" / "0"
    for target, content in files.items():
        (staging / target).parent.mkdir(parents=True, exist_ok=True)
        (staging / target).write_bytes(content)
    install(folder, files_below(staging), name=name, source=[])
    return folder


def entry_of(name: str, steps: list[dict[str, Any]], **more: Any) -> Entry:
    known = {"kind": "data", "title": "t", "license": "-", "folder": f"dataset/{name}"}
    source = {"kind": "url", "url": "http://127.0.0.1:9/f"}
    return Entry.model_validate({"name": name, "source": source, "organise": steps} | known | more)


def record(number: int, image: Any, answer: str = "yes") -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
    return {"id": number, "image": image, "conversations": turns}


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    return buffer.getvalue()


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as t:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
