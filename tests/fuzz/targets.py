"""Five readers of foreign bytes, each with a strategy of its input and with what must hold after it was read.

A target's input is a set of small files, name -> content. `read` puts them through the whole reader; anything that it
raises and that is no VlmError is a find, and so is a promise that does not hold (AssertionError) or a read that hangs.
"""

import io
import json
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from hypothesis import strategies as st
from PIL import Image

from fuzz.shapes import NAMES, PATHS, TEXTS, as_json, broken, nested, torn
from support import prediction_files
from vlm.core.check.check import CheckedFile, check
from vlm.core.check.report import collect
from vlm.core.fetch.archive import extract
from vlm.core.sample.measure import Rules
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.eval.saved.score import score_predictions
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import load_model, save_model
from vlm.models.processor import Processor
from vlm.models.specs import load_preset
from vlm.train.plan.run_plan import RunPlan
from vlm.train.recipe.recipe import Recipe, load_recipe, shipped
from vlm.train.run.stream import Stream

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
TOKENIZER = GOLDEN / "tokenizers" / "internlm2"

Files = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """A reader: `files` draws its input, `read` reads a folder of files; `world` is a folder with what they need."""

    files: Callable[[Path], st.SearchStrategy[Files]]
    read: Callable[[Path, Path], object]


# records


def _world_of_records(world: Path) -> Path:
    root = world / "records"
    if not root.exists():
        (root / "clip").mkdir(parents=True)
        for name in ("0.png", "1.jpg", "clip/0.png", "clip/1.png"):
            Image.new("RGB", (40, 25), (200, 30, 30)).save(root / name)
    return root


RECORDS = [
    {"id": "a", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    {
        "id": 7,
        "image": "0.png",
        "width": 40,
        "conversations": [
            {"from": "system", "value": "be brief"},
            {"from": "human", "value": "<image>\nwhat?"},
            {"from": "gpt", "value": "red", "loss": 1},
            {"from": "human", "value": "sure?"},
            {"from": "gpt", "value": "yes"},
        ],
    },
    {
        "id": "two",
        "image": ["0.png", "1.jpg"],
        "conversations": [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "both"}],
    },
    {
        "id": "video",
        "video": "clip",
        "clip": [0, 1.5],
        "conversations": [{"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "a color"}],
    },
]


def _record_files(world: Path) -> st.SearchStrategy[Files]:
    line = st.sampled_from(RECORDS).flatmap(broken).map(as_json)
    odd = st.sampled_from(
        [b"", b"{", b"null", b"[]", b"\x00\x00", b"\xff\xfe", nested(), b'{"id": 1e999}', b'{"a":NaN}']
    )
    lines = st.lists(line | line | line | odd, min_size=1, max_size=4)
    end = st.sampled_from([b"\n", b"\n", b"\r\n"])
    content = st.tuples(lines, end).map(lambda parts: parts[1].join([*parts[0], b""]))
    listed = st.lists(st.sampled_from(RECORDS).flatmap(broken), max_size=3).map(as_json)
    return st.fixed_dictionaries({"train.jsonl": (content | content | content | listed).flatmap(torn)})


@cache
def _processor() -> Processor:
    return Processor(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0).spec, TOKENIZER)


def _read_records(folder: Path, world: Path) -> None:
    """Check a file and read it as training does: both must call the same records usable, and every count closes."""
    root, file = _world_of_records(world), folder / "train.jsonl"
    data = {
        "title": "fuzz",
        "name": "fuzz",
        "model": {"start": "none", "preset": "tiny-internvl2"},
        "data": [{"name": "fuzz", "file": str(file), "root": str(root)}],
        "trainable": ["*"],
        "optimizer": {"lr": 0.1},
        "batch": {"samples": 1, "max_tokens": 256},
        "epochs": 1,
        "max_length": 256,
        "sources": {"": "fuzz"},
    }
    recipe, processor = Recipe.model_validate(data), _processor()
    encoder = processor.encoder
    rules = Rules(
        TOKENIZER,
        processor.spec.template,
        processor.spec.image_rule,
        processor.tokens_per_tile,
        encoder.image_tokens,
        processor.spec.system,
        max_length=256,
        max_tiles=recipe.batch.max_tiles,
    )
    source = CheckedFile("fuzz", file, root)
    report = collect(rules, [source], check(rules, [source]))
    lines = sum(map(len, report.lines.values()))
    faulty = {fault.line for fault in report.errors}
    stream = Stream(recipe, processor)
    steps = [stream.step(i) for i in range(stream.total_steps)]
    dropped = {int(lost.id.rsplit(":", 1)[1]) for step in steps for lost in step.lost if lost.what == "dropped"}
    assert sum(step.n_samples for step in steps) == lines
    assert dropped == faulty, f"training drops lines {sorted(dropped)}, the check refuses {sorted(faulty)}"


# recipes


def _recipe_files(world: Path) -> st.SearchStrategy[Files]:
    names = [
        "mini-v2pe-short",
        "convllava-stage3",
        "v2pe-32k",
        "internvl-chat-v1-2-finetune-lora",
        "quickstart-v2pe-sft",
    ]
    tables = [yaml.safe_load(shipped(name).read_text()) for name in names]
    text = st.sampled_from(tables).flatmap(broken).map(as_json)
    own = st.sampled_from(tables).map(lambda table: yaml.safe_dump(table).encode())
    return st.fixed_dictionaries({"own.yaml": text.flatmap(torn) | own.flatmap(torn)})


def _read_recipe(folder: Path, world: Path) -> None:
    """Resolve a recipe as `vlm plan` does."""
    plan = RunPlan.resolve(load_recipe(str(folder / "own.yaml")), processes=8, machine="a100-80")
    plan.as_dict()


# predictions

WRITERS = {
    "POPE": prediction_files.pope,
    "MMBench-dev-en": prediction_files.mmbench,
    "RefCOCO-val": prediction_files.refcoco,
    "ChartQA": prediction_files.chartqa,
}


@cache
def _benchmark(name: str, world: Path) -> Path:
    folder = world / "benchmarks" / name
    if not folder.exists():
        make_mini(name, folder)
    return folder


def _prediction_files(world: Path) -> st.SearchStrategy[Files]:
    def files(name: str) -> st.SearchStrategy[Files]:
        items = load_items(load_benchmark(name), _benchmark(name, world))
        out = world / "written" / name
        out.mkdir(parents=True, exist_ok=True)
        file = WRITERS[name](out, items)[0]
        text = file.read_bytes()
        if file.suffix == ".json":
            content = broken(json.loads(text)[:12]).map(as_json)
        elif file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.decode().split("\n")[:12] if line]
            content = broken(rows).map(lambda all: b"\n".join(map(as_json, all if isinstance(all, list) else [all])))
        else:
            content = st.just(text)
        return st.fixed_dictionaries({f"{name}{file.suffix}": content.flatmap(torn)})

    return st.sampled_from(sorted(WRITERS)).flatmap(files)


def _read_predictions(folder: Path, world: Path) -> None:
    """Score predictions: every item of the benchmark has an outcome afterwards, and the results can be read."""
    (file,) = folder.iterdir()
    data, out = _benchmark(file.stem, world), folder / "out"
    summary = score_predictions(load_benchmark(file.stem), [file], out, data=data, name="fuzz")
    rows = [json.loads(line) for line in (out / "results.jsonl").read_bytes().split(b"\n") if line]
    assert len(rows) == sum(summary["outcomes"].values()) == len(load_items(load_benchmark(file.stem), data))


# checkpoints


@cache
def _checkpoint(world: Path) -> Path:
    folder = world / "checkpoint"
    if not folder.exists():
        save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0), folder, tokenizer=TOKENIZER)
    return folder


def _checkpoint_files(world: Path) -> st.SearchStrategy[Files]:
    folders = [_checkpoint(world), GOLDEN / "convllava-tiny", GOLDEN / "internvl2-v2pe-tiny"]

    def files(folder: Path) -> st.SearchStrategy[Files]:
        content = (folder / "model.safetensors").read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header, config = json.loads(content[8 : 8 + size]), json.loads((folder / "config.json").read_bytes())
        few = broken({"config": config, "header": header, "index": None}, most=2)
        index = {"weight_map": dict.fromkeys(list(header)[1:], "model.safetensors")}
        indexed = broken({"config": config, "header": header, "index": index}, most=2)

        def written(parts: object) -> Files:
            made = parts if isinstance(parts, dict) else {}
            kept = {"config": config, "header": header, "index": None, **made}
            result = {"config.json": as_json(kept["config"]), "header": as_json(kept["header"])}
            result["bytes"] = str(len(content) - 8 - size).encode()
            if kept["index"] is not None:
                result["model.safetensors.index.json"] = as_json(kept["index"])
            return result

        only_config = broken(config).map(lambda c: written({"config": c}))
        return only_config | only_config | few.map(written) | indexed.map(written)

    return st.sampled_from(folders).flatmap(files)


def _read_checkpoint(folder: Path, world: Path) -> None:
    """Load a checkpoint and its processor. The header is kept without the weights, which are zeros."""
    header, size = (folder / "header").read_bytes(), int((folder / "bytes").read_bytes())
    (folder / "header").unlink()
    with (folder / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(header)) + header + bytes(size))
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder / file.name)
    layout = read_layout(folder)
    Processor(layout.spec, folder)
    load_model(folder)


# archives

KINDS = st.sampled_from([tarfile.REGTYPE] * 6 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
MEMBERS = st.lists(
    st.tuples(PATHS | NAMES | TEXTS, st.binary(max_size=40), KINDS, PATHS, st.integers(-1, 2**34)), max_size=5
)


def _tar(members: list[tuple[str, bytes, bytes, str, int]], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT, errors="surrogateescape") as t:  # type: ignore[call-overload]
        for name, content, kind, link, time in members:
            info = tarfile.TarInfo(name.encode("utf-8", "replace").decode())
            info.type, info.linkname, info.mtime = kind, link.encode("utf-8", "replace").decode(), time
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            t.addfile(info, io.BytesIO(content) if info.size else None)
    return out.getvalue()


def _zip(members: list[tuple[str, bytes, bytes, str, int]], method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, content, kind, _, time in members:
            info = zipfile.ZipInfo("x")
            info.filename = name.encode("utf-8", "replace").decode()
            info.external_attr = (0o120644 if kind == tarfile.SYMTYPE else 0o100644) << 16
            info.date_time = (1980 + time % 100, 1 + time % 12, 1 + time % 28, 0, 0, 0)
            z.writestr(info, content, method)
    return out.getvalue()


def _archive_files(world: Path) -> st.SearchStrategy[Files]:
    tars = st.tuples(MEMBERS, st.sampled_from(["w", "w:gz", "w:xz"])).map(lambda a: _tar(*a))
    zips = st.tuples(MEMBERS, st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])).map(lambda a: _zip(*a))
    return st.fixed_dictionaries({"a.bin": (tars | zips).flatmap(torn)})


def _read_archive(folder: Path, world: Path) -> None:
    """Extract: nothing appears outside the target, and after an error nothing is left in it."""
    before, into = sorted(folder.iterdir()), folder / "into" / "deep"
    try:
        found = extract(folder / "a.bin", {"*": ""}, into)
    except Exception:
        assert not into.exists()
        raise
    finally:
        outside = set(folder.rglob("*")) - set(into.rglob("*")) - {*before, into, into.parent}
        assert not outside, f"written outside: {outside}"
    inside = [path for path in into.rglob("*") if not path.is_dir()]
    assert sorted(inside) == sorted(path for path, _ in found)
    assert not any(path.is_symlink() for path in into.rglob("*"))


TARGETS = {
    "records": Target(_record_files, _read_records),
    "recipes": Target(_recipe_files, _read_recipe),
    "predictions": Target(_prediction_files, _read_predictions),
    "checkpoints": Target(_checkpoint_files, _read_checkpoint),
    "archives": Target(_archive_files, _read_archive),
}
