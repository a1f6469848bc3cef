"""Long-VQA: questions of an ordinary set, each about one picture among many others of the same set, at any length.

`build_long_vqa` writes below one folder, named as the published tree:

    annotation/long_vqa_32k/train_long_vqa_TASK_16_32.jsonl    for a budget of 16K-32K
    val/long_vqa_32k/val_long_vqa_TASK_16_32.jsonl
    image/long_vqa/{image|paste}/TASK/{train,val}/…             image names are relative to this, as published
    parts/…, sources-TASK.json                                  the origin of each part

`image` holds the six sets of documents, `paste` all others, as published; a folder can hold any number of sets. With
`paste` above 1, that many pictures share one labeled page. Why it is made so: docs/long-context-data.md.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm.core.errors import ConfigError, DataError
from vlm.core.home import read_json, write_json
from vlm.core.synth.haystack import SHORTLY
from vlm.core.synth.long.budget import Budget
from vlm.core.synth.long.long_mr import SHORTFALL
from vlm.core.synth.long.materials import Split, find_images
from vlm.core.synth.long.pictures import Picture
from vlm.core.synth.long.record_cost import Ruler
from vlm.core.synth.long.sharded_build import SetShard, build_shards, described_ruler
from vlm.core.synth.long.units import fit
from vlm.core.synth.long.vqa_document import VqaDocument
from vlm.core.synth.long.vqa_set import VqaSet, read_vqa

GOLDEN = 0.6180339887498949
DOCUMENTS = ("deepform", "docvqa", "infovqa", "kleistercharity", "svqa", "visualmrc")
"""Sets whose images lie in `image/`, the others' in `paste/`. Source: OpenGVLab/V2PE."""

LENGTHS = ("16_32", "32_40", "40_48", "48_56", "56_64")
"""Published lengths in thousands of tokens."""

NAMES: dict[Split, str] = {"train": "annotation", "val": "val"}


@dataclass(frozen=True)
class LongVqaOptions:
    """Options of Long-VQA.

    `task`: name of the set, which decides how Long-VQA scores it (chartqa, docvqa, …). `train`, `val`: records of each
    budget. `paste`: pictures on one page. `suffix`: added to a question that does not say how to answer.
    """

    task: str
    budgets: tuple[Budget, ...]
    train: int = 100
    val: int = 20
    seed: int = 0
    paste: int = 1
    val_share: float = 0.25
    repeat_images: bool = False
    suffix: str = SHORTLY


def build_long_vqa(
    folder: Path,
    files: Sequence[Path],
    options: LongVqaOptions,
    ruler: Ruler,
    *,
    root: Path | None = None,
    images: Sequence[Path] = (),
    workers: int = 1,
    outside: Sequence[Path] = (),
) -> str:
    """Write the set made from the records in `files`.

    Args:
        folder: Where to write it.
        files: JSONL files of an ordinary set.
        options: Task, budgets and numbers of records.
        ruler: Tokenizer, template and image rule that the budgets are counted with.
        root: Folder that image paths of `files` are relative to; by default that of each file.
        images: Folders of more distractor pictures.
        workers: Processes; the result does not depend on their number.
        outside: Folders outside of the root that records may name.

    Returns:
        "present" when the set is there already, else "built".

    Raises:
        ConfigError: A budget does not hold a question with a distractor.
        DataError: Too few pictures or questions.
        LockedError: Another build works in the folder.
    """
    if not (options.train or options.val):
        raise ConfigError("nothing to build", expected="--train or --val above 0")
    more = find_images(images, val_share=options.val_share, smallest=1).images if images else ()
    job = LongVqa(options, ruler, read_vqa(files, root=root, val_share=options.val_share, more=more, outside=outside))
    for shard in job.shards(1):  # before anything is written
        if shard.start == 0:
            job.sample(shard.split, shard.name, 0)
    outcome = build_shards(folder, job, workers=workers, purpose=f"vlm data build long-vqa --out {folder}")
    _mark(folder, options)
    return outcome


def _mark(folder: Path, options: LongVqaOptions) -> None:
    """Write how many questions of each set the folder has, for the benchmark of its one length."""
    names = [budget.name for budget in options.budgets]
    if not options.val or len(names) > 1 or names[0] not in LENGTHS:
        return
    marker = {"benchmark": f"Long-VQA-{names[0][3:]}k", "seed": options.seed, "counts": {options.task: options.val}}
    path = folder / "mini.json"
    before = read_json(path) if path.is_file() else {}
    if before.get("benchmark") == marker["benchmark"]:
        marker["counts"] = before["counts"] | marker["counts"]
    write_json(path, marker)


@dataclass(frozen=True)
class LongVqa:
    """The work as a picklable description: `shards()`, and `sample(split, budget, i)` without any state."""

    options: LongVqaOptions
    ruler: Ruler
    data: VqaSet

    def described(self) -> dict[str, Any]:
        """Return everything that decides the bytes of the set, for its manifest."""
        made_of = {key: [source.sha256, self.data.turns[key]] for key, source in sorted(self.data.sources.items())}
        return {"kind": "long-vqa", "options": asdict(self.options), **described_ruler(self.ruler), "made_of": made_of}

    def shards(self, size: int) -> list[SetShard]:
        """Return the work in shards of `size` records of one budget."""
        counts: dict[Split, int] = {"train": self.options.train, "val": self.options.val}
        return [
            SetShard(split, budget.name, start, min(start + size, count))
            for split, count in counts.items()
            for budget in self.options.budgets
            for start in range(0, count, size)
        ]

    def rows(self, shard: SetShard) -> Iterator[tuple[dict[str, Any], list[Picture], Path]]:
        """Yield (line of each file, pictures, their folder) for each record of a shard."""
        upper = shard.name.rsplit("_", 1)[1]
        name = f"{shard.split}_long_vqa_{self.options.task}_{shard.name}.jsonl"
        file = f"{NAMES[shard.split]}/long_vqa_{upper}k/{name}"
        for i in range(shard.start, shard.end):
            record, parts, pictures = self.sample(shard.split, shard.name, i)
            yield {file: record, f"parts/{name}": parts}, pictures, self._images(shard.split)

    def _images(self, split: Split) -> Path:
        kind = "image" if self.options.task in DOCUMENTS else "paste"
        return Path("image/long_vqa") / kind / self.options.task / split

    @property
    def manifest(self) -> str:
        """Name of the manifest: one folder holds many sets."""
        return f".vlm-manifest-{self.options.task}.json"

    def extras(self) -> dict[str, Any]:
        """Return further JSON files of the set, as name -> content."""
        listed = [
            {"file": s.name, "sha256": s.sha256, "pixels": key, "licence": s.license, "split": s.split}
            for key, s in sorted(self.data.sources.items())
        ]
        return {f"sources-{self.options.task}.json": {"sources": listed, "records_not_used": self.data.unused}}

    def sample(self, split: Split, name: str, i: int) -> tuple[dict[str, Any], dict[str, Any], list[Picture]]:
        """Return a Long-VQA record, the origin of its parts, and its pictures, which are not drawn yet."""
        options = self.options
        where = f"{options.task}/{name}/{split}/{i}"
        rng = random.Random(f"long-vqa/{options.seed}/{where}")
        (budget,) = (b for b in options.budgets if b.name == name)
        tokens = budget.draw(rng)
        questions = self.data.questions(split)
        if not questions:
            raise DataError(f"no question for {split}", fix="give more records, or another --val-share")
        order = random.Random(f"long-vqa/{options.seed}/{options.task}/{split}")  # each question once, then again
        key, turn = order.sample(questions, len(questions))[i % len(questions)]
        depth = (order.random() + i * GOLDEN) % 1  # even over any number of records
        document = VqaDocument(self.ruler, self.data, key, turn, options.suffix, f"{options.task}-{name}/{i:05}")
        keys = [k for k in self.data.keys(split) if k != key]
        pages = document.choose(rng, keys, tokens, paste=options.paste, repeat=options.repeat_images)
        document.arrange(rng, pages, depth)
        while document.measure([]).total > tokens and len(pages) > 2:  # labels cost more in the document than alone
            document.arrange(rng, pages := pages[:-1], depth)
        seed = rng.random()

        def make(target: int) -> tuple[int, list[str]]:
            notes = document.notes(random.Random(seed), target)
            return document.measure(notes).total, notes

        empty, notes = make(0)
        if empty > tokens or empty < 0.99 * tokens:
            what = f"Long-VQA record {where}"
            notes = fit(tokens, round((1 - SHORTFALL) * tokens) - empty, make, what=what, over=False)
        record = document.record(where.replace("/", "-"), notes, tokens)
        return record, {"id": record["id"], "parts": document.parts(notes)}, document.pictures
