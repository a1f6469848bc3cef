"""Long-MR: long documents of prose and pictures that hide needles, in MM-NIAH's record schema, at any length.

`build_long_mr` writes below one folder:

    train/annotations/TASK.jsonl            conversations, images relative to train/images
    mm_niah_test/annotations/TASK.jsonl     MM-NIAH records, images relative to mm_niah_test/images
    val/long_mr_128k/test_long_mr_*.jsonl   instead, for one length that is published; images in image/long_mr/val
    …/pool/…, …/TASK/…                      haystack pictures, pictures with needles
    parts/SPLIT/TASK.jsonl                  the origin of each part of each record
    sources.json, mini.json                 sources with SHA-256, license and split; the loader's marker

Sample i of a task is a function of (options, sources, i) alone. Why it is made so: docs/long-context-data.md.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm.core.errors import ConfigError, UnknownName
from vlm.core.fetch.manifest import MANIFEST
from vlm.core.synth.long.budget import Budget
from vlm.core.synth.long.haystack_pool import Pool
from vlm.core.synth.long.materials import Materials, Split, find_sources
from vlm.core.synth.long.mr_document import MrDocument, conversation
from vlm.core.synth.long.needles import TASKS, Hidden, Setting
from vlm.core.synth.long.pictures import Picture
from vlm.core.synth.long.record_cost import Ruler
from vlm.core.synth.long.sharded_build import SetShard, build_shards, described_ruler
from vlm.core.synth.long.units import Unit, fit, place_units

FOLDERS: dict[Split, str] = {"train": "train", "val": "mm_niah_test"}
LONG = {"64_128": "128k", "128_256": "256k", "256_512": "512k", "512_1200": "1m"}
"""Published lengths of Long-MR's validation files, in thousands of tokens -> name of the length."""

LONG_TASKS = {
    "retrieval-image": "image_retrieval",
    "retrieval-text": "text_retrieval",
    "reasoning-image": "image_reasoning",
    "reasoning-text": "text_reasoning",
}
"""Tasks that Long-MR's validation has -> how its files are named."""

SHORTFALL = 0.003
"""Documents aim this share below their budget, which no sample exceeds: `max_length` must not cut an answer."""


@dataclass(frozen=True)
class LongMrOptions:
    """Options of Long-MR. `train`, `val`: records of each task; record i takes the budget i modulo their number."""

    budgets: tuple[Budget, ...]
    tasks: tuple[str, ...] = tuple(TASKS)
    train: int = 100
    val: int = 20
    seed: int = 0
    image_share: float = 0.5
    val_share: float = 0.25


def build_long_mr(
    folder: Path,
    options: LongMrOptions,
    ruler: Ruler,
    *,
    images: Sequence[Path] = (),
    texts: Sequence[Path] = (),
    workers: int = 1,
) -> str:
    """Write the set; a build that was killed continues.

    Args:
        folder: Where to write it.
        options: Budgets, tasks and numbers of records.
        ruler: Tokenizer, template and image rule that the budgets are counted with.
        images: Folders or files of pictures; none: those that installed packages ship.
        texts: Folders or files of prose; none: those that installed packages ship.
        workers: Processes; the result does not depend on their number.

    Returns:
        "present" when the set is there already, else "built".

    Raises:
        ConfigError: An unknown task, or a budget that does not hold its needle.
        DataError: Too few sources.
        LockedError: Another build works in the folder.
    """
    for task in options.tasks:
        if task not in TASKS:
            raise UnknownName("task", task, TASKS)
    if not options.tasks or not (options.train or options.val):
        raise ConfigError("nothing to build", expected="a task, and --train or --val above 0")
    job = LongMr(options, ruler, find_sources(images, texts, val_share=options.val_share))
    for split in job.counts:  # before anything is written
        for task in options.tasks:
            job.sample(split, task, min(options.budgets.index(min(options.budgets)), job.counts[split] - 1))
    purpose = f"vlm data build long-mr --out {folder}"
    return build_shards(folder, job, workers=workers, purpose=purpose)


@dataclass(frozen=True)
class LongMr:
    """The work as a picklable description: `shards()`, and `sample(split, task, i)` without any state."""

    options: LongMrOptions
    ruler: Ruler
    sources: Materials

    @property
    def counts(self) -> dict[Split, int]:
        """Records of each task, by split, without the splits that are not asked for."""
        counts: dict[Split, int] = {"train": self.options.train, "val": self.options.val}
        return {split: count for split, count in counts.items() if count}

    @cached_property
    def pools(self) -> dict[Split, Pool]:
        """The haystack of each split."""
        return {split: Pool(self.sources.of(split), self.ruler, self.options.seed) for split in self.counts}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "pools"}

    def described(self) -> dict[str, Any]:
        """Return everything that decides the bytes of the set, for its manifest."""
        listed = self.sources.described()["sources"]
        return {"kind": "long-mr", "options": asdict(self.options), **described_ruler(self.ruler), "sources": listed}

    def shards(self, size: int) -> list[SetShard]:
        """Return the work in shards of `size` records of one task."""
        return [
            SetShard(split, task, start, min(start + size, count))
            for split, count in self.counts.items()
            for task in self.options.tasks
            for start in range(0, count, size)
        ]

    def rows(self, shard: SetShard) -> Iterator[tuple[dict[str, Any], list[Picture], Path]]:
        """Yield (line of each file, pictures, their folder) for each record of a shard."""
        file, images = self.places(shard.split, shard.name)
        for i in range(shard.start, shard.end):
            record, parts, pictures = self.sample(shard.split, shard.name, i)
            if shard.split == "train":
                record = conversation(record, f"long-mr/{self.options.seed}/{shard.name}/{i}")
            yield {file: record, f"parts/{shard.split}/{shard.name}.jsonl": parts}, pictures, images

    def places(self, split: Split, task: str) -> tuple[str, Path]:
        """Return (file of records, folder of images) of a task, below the folder of the set."""
        if split == "val" and self.long and task in LONG_TASKS:
            name = f"test_long_mr_{LONG_TASKS[task]}_{self.options.budgets[0].name}.jsonl"
            return f"val/long_mr_{self.long}/{name}", Path("image/long_mr/val")
        return f"{FOLDERS[split]}/annotations/{task}.jsonl", Path(FOLDERS[split]) / "images"

    @property
    def long(self) -> str | None:
        """The published length that the set is made for; None for other lengths."""
        return LONG.get(self.options.budgets[0].name) if len(self.options.budgets) == 1 else None

    @property
    def benchmark(self) -> str:
        """The benchmark that reads the validation records."""
        return f"MM-NIAH-long-{self.long}" if self.long else "MM-NIAH"

    @property
    def manifest(self) -> str:
        """Name of the manifest."""
        return MANIFEST

    def extras(self) -> dict[str, Any]:
        """Return further JSON files of the set, as name -> content."""
        extras: dict[str, Any] = {"sources.json": self.sources.described()}
        if "val" in self.counts:
            tasks = [task for task in self.options.tasks if not self.long or task in LONG_TASKS]
            counts = dict.fromkeys(tasks, self.options.val)
            extras["mini.json"] = {"benchmark": self.benchmark, "seed": self.options.seed, "counts": counts}
        return extras

    def sample(self, split: Split, task: str, i: int) -> tuple[dict[str, Any], dict[str, Any], list[Picture]]:
        """Return an MM-NIAH record, the origin of its parts, and its pictures, which are not drawn yet."""
        options, pool = self.options, self.pools[split]
        where = f"long-mr/{options.seed}/{split}/{task}/{i}"
        rng = random.Random(where)
        budget = options.budgets[i % len(options.budgets)].draw(rng)
        order = random.Random(f"long-mr/{options.seed}/{split}/{task}")  # every depth once, in random order
        depth = (order.sample(range(self.counts[split]), self.counts[split])[i] + 0.5) / self.counts[split]
        share = round(options.image_share * budget)
        hidden = TASKS[task](Setting(rng, pool, depth, f"{task}/{i:05}", share, i))
        fixed = sum(unit.cost for _, unit in hidden.units if unit.image)
        asked = [*hidden.asked, *(hidden.choice_pictures or [])]
        fixed += sum(self.ruler.image_cost(picture.size) for picture in asked)
        others = pool.fill(rng, share - fixed, hidden.exclude)
        if not others and not any(unit.image for _, unit in hidden.units):
            others = [pool.carrier(rng, hidden.exclude, 0)]  # a multimodal haystack shows at least one
        seed = rng.random()

        def make(target: int) -> tuple[int, "MrDocument"]:
            made = MrDocument(self.ruler, hidden, *_arrange(random.Random(seed), pool, others, hidden, max(0, target)))
            return made.measured.total, made

        empty = make(0)[0]
        if empty > budget:
            raise ConfigError(
                f"{task}: needle, question and its pictures alone take {empty} tokens, the budget is {budget}",
                expected=f"--tokens of at least {round(1.3 * empty)}",
                fix="raise --tokens, or lower --max-tiles",
            )
        target = round((1 - SHORTFALL) * budget)
        made = fit(budget, target - empty, make, what=f"{task} document", over=False)
        return made.record(i, budget), {"id": i, "parts": made.parts()}, made.pictures


def _arrange(
    rng: random.Random, pool: Pool, others: list[Picture], hidden: Hidden, target: int
) -> tuple[list[Unit], list[Picture]]:
    """Return paragraphs of `target` tokens with pictures at random gaps and the hidden units at their depths."""
    paragraphs = pool.prose(rng, target)
    gaps = sorted(rng.randint(0, len(paragraphs)) for _ in others)
    units: list[Unit] = []
    following = iter(zip(gaps, others, strict=True))
    gap, picture = next(following, (-1, None))
    for k, paragraph in enumerate([*paragraphs, []]):
        while picture is not None and gap == k:
            units.append(Unit("", pool.ruler.image_cost(picture.size) + 1, picture))
            gap, picture = next(following, (-1, None))
        units += paragraph
    return place_units(units, hidden.units), [*hidden.asked]
