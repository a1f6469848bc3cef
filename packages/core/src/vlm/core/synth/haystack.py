"""Haystacks: long documents of everyday sentences and pictures that hide handwritten digits, or a number in words.

Training records are `conversations` JSONL, test records follow MM-NIAH. Images are named relative to `dataset/`, so
that nothing is copied. Sample i is a function of (seed, split, i) and of the sources alone.

    build_haystack("haystack", HaystackOptions(tokens=1024, tokens_per_image=16, count=100))
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vlm.core.errors import ConfigError, DataError
from vlm.core.fetch.manifest import read_manifest, sha256_of
from vlm.core.fetch.transfer import disk_errors
from vlm.core.home import dataset, locked, read_json, write_json
from vlm.core.sample.records import iter_jsonl
from vlm.core.synth.long.units import Unit, fit, place_units
from vlm.core.synth.sentences import SENTENCES
from vlm.core.synth.vqa_records import NUMBER_WORDS, write_jsonl

QUESTION = {"hidden": "Which digit is hidden?", "order": "Which digit comes first?", "text": "Which number is written?"}
NEEDLE = "The number is {}."
"""The sentence that the task `text` hides."""

SHORTLY = "\nAnswer the question using a single word or phrase."
"""What the MM-NIAH prompt appends to a question (the published evaluators); training records carry it too."""

MARKERS = 2
"""Tokens around the visual tokens of an image: <img> and </img>."""

PHOTOGRAPHS = 0.2
"""Share of the distractors that are photographs; the others are easy-VQA shapes."""

SLACK = 2
"""Tokens by which a document may miss its length when 1 % is less: a sentence has at least five."""

Count = Callable[[str], int]


@dataclass(frozen=True)
class HaystackOptions:
    """Options of a haystack.

    `tokens`: length of a whole human turn, an image counting `tokens_per_image` + 2. `times`: the length as a multiple
    of the training length, recorded only. `image_share`: share of the tokens that images take. `task`: `hidden` asks
    for the one digit there is, `order` for the first of two different ones; `text` hides a sentence that names a number
    of one digit, among pictures without digits, and asks for the number.
    """

    tokens: int
    tokens_per_image: int
    count: int
    split: Literal["train", "test"] = "train"
    seed: int = 0
    image_share: float = 0.5
    times: str = "1x"
    task: Literal["hidden", "order", "text"] = "hidden"


@dataclass(frozen=True)
class _Pools:
    """Image names relative to dataset/, by role; training and test share none."""

    digits: dict[str, list[str]]
    shapes: list[str]
    photographs: list[str]


def build_haystack(out: str, options: HaystackOptions, *, tokenizer: Path | None = None) -> Path:
    """Write `dataset/<out>/train.jsonl`, or for test `annotations/digit-haystack.jsonl`; do nothing when it is there.

    Args:
        out: Folder below `dataset/`.
        options: Length, split, seed and task.
        tokenizer: A folder with `tokenizer.json`, or that file; None counts words and punctuation marks.

    Returns:
        The file of records.

    Raises:
        DataError: digits, easy-vqa or photographs are missing.
        ConfigError: No document fits the budget.
    """
    folder = dataset() / out
    path = folder / ("train.jsonl" if options.split == "train" else "annotations/digit-haystack.jsonl")
    tokenizer = tokenizer / "tokenizer.json" if tokenizer and tokenizer.is_dir() else tokenizer
    count = counter(tokenizer)
    made_of = {"options": asdict(options), "tokenizer": sha256_of(tokenizer) if tokenizer else "words"}
    made_of["sources"] = {name: _source(name) for name in ("digits", "easy-vqa", "photographs")}
    described = json.loads(json.dumps(made_of))
    about = folder / f"manifest-{options.split}.json"
    with disk_errors(folder), locked(folder, f"vlm data build haystack --out {out}"):
        known = read_json(about) if about.exists() else {}
        if known.get("made_of") == described and path.is_file() and sha256_of(path) == known["sha256"]:
            return path
        about.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = list(haystacks(options, _pools(options.split), count))
        as_record = training_record if options.split == "train" else niah_record
        write_jsonl(path, [as_record(sample, options) for sample in samples])
        if options.split == "test":
            _link_images(folder)
            marker = {"benchmark": folder.name, "seed": options.seed, "counts": {"digit-haystack": len(samples)}}
            write_json(folder / "mini.json", marker)
        lengths = [sample["meta"]["context_length"] for sample in samples]
        statistics = {"records": len(samples), "shortest": min(lengths), "longest": max(lengths)}
        write_json(about, {"made_of": described, "sha256": sha256_of(path), "statistics": statistics})
    return path


def counter(tokenizer: Path | None) -> Count:
    """Return a function that counts the tokens of a text by a `tokenizer.json`; None counts words and marks.

    Raises:
        ConfigError: The file is missing.
    """
    if tokenizer is None:
        return lambda text: len(text.replace(".", " .").replace("?", " ?").split())
    if not tokenizer.is_file():
        raise ConfigError(f"no such file: {tokenizer}", fix="vlm data tokenizer --out DIR FILE.jsonl")
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


def haystacks(options: HaystackOptions, pools: _Pools, count: Count) -> Iterator[dict[str, Any]]:
    """Yield `options.count` MM-NIAH records.

    Asked numbers are balanced. With one in a document, depths cover 0..1 evenly. Both are shuffled independently.
    """
    rng = random.Random(f"haystack/{options.seed}/{options.split}")
    depths = rng.sample(range(options.count), options.count)
    answers = rng.sample([i % 10 for i in range(options.count)], options.count)
    costs = {sentence: count(sentence + " ") for sentence in SENTENCES}
    for i in range(options.count):
        rng = random.Random(f"haystack/{options.seed}/{options.split}/{i}")
        digits, at = [NUMBER_WORDS[answers[i]]], [(depths[i] + 0.5) / options.count]
        if options.task == "order":
            digits.append(rng.choice([word for word in pools.digits if word != digits[0]]))
            at = sorted((rng.random(), rng.random()))
        yield _haystack(i, digits, at, rng, options, pools, count, costs)


def _haystack(
    i: int,
    digits: list[str],
    depths: list[float],
    rng: random.Random,
    options: HaystackOptions,
    pools: _Pools,
    count: Count,
    costs: dict[str, int],
) -> dict[str, Any]:
    per_image = options.tokens_per_image + MARKERS
    question = QUESTION[options.task]
    room = options.tokens - count("\n" + question + SHORTLY)
    n_images = max(len(digits), round(room * options.image_share / per_image))
    if options.task == "text":
        sentence = NEEDLE.format(digits[0])
        needles = [Unit(sentence, count(sentence + " "))]
    else:
        needles = [Unit("", per_image, rng.choice(pools.digits[digit])) for digit in digits]
    written = sum(needle.cost for needle in needles if not needle.image)
    if room < n_images * per_image + written + max(costs.values()):
        raise ConfigError(
            f"{options.tokens} tokens do not hold {len(digits)} image(s) of {per_image}, a sentence and the question",
            fix="raise --tokens or lower --tokens-per-image or --image-share",
        )
    n_others = n_images - sum(bool(needle.image) for needle in needles)
    n_photographs = min(len(pools.photographs), round(PHOTOGRAPHS * n_others))
    others = rng.sample(pools.photographs, n_photographs)
    others += _draw(rng, pools.shapes, n_others - n_photographs)
    rng.shuffle(others)

    def make(target: int) -> tuple[int, tuple[int, int, str, list[Unit]]]:
        hidden = list(zip(depths, needles, strict=True))
        units = _arrange(rng, _fill(rng, target - written, costs), others, hidden, costs, per_image)
        context = _text(units).rstrip(" ") + "\n"
        text = sum(map(count, (context + question + SHORTLY).split("<image>")))
        return text + n_images * per_image, (text + n_images * per_image, text, context, units)

    total, text, context, units = fit(options.tokens, room - n_images * per_image, make, what="document", slack=SLACK)
    images = [unit.image for unit in units if unit.image]
    before = [_text(units[: units.index(needle)]).split("<image>") for needle in needles]
    meta = {
        "placed_depth": [round((sum(map(count, b)) + per_image * (len(b) - 1)) / total, 4) for b in before],
        "context_length": total,
        "context_length_text": text,
        "context_length_image": n_images * per_image,
        "num_images": n_images,
        "needles": [needle.image or needle.text for needle in needles],
        "choices": None,
        "choices_image_path": None,
        "times": options.times,
    }
    asked = {"question": question, "answer": digits[0], "meta": meta}
    return {"id": i, "images_list": images, "context": context, **asked}


def _text(units: Iterable[Unit]) -> str:
    return "".join("<image>\n" if unit.image else f"{unit.text} " for unit in units)


def _fill(rng: random.Random, target: int, costs: dict[str, int]) -> list[str]:
    """Return random sentences of `target` tokens in all, as near as the shortest sentence allows."""
    sentences: list[str] = []
    longest, left = max(costs.values()), target
    while left > 0:
        fitting = SENTENCES if left >= 2 * longest else [s for s in SENTENCES if costs[s] == left]
        fitting = fitting or [s for s in SENTENCES if costs[s] < left]
        if not fitting:
            break
        sentences.append(rng.choice(fitting))
        left -= costs[sentences[-1]]
    return sentences


def _arrange(
    rng: random.Random,
    sentences: list[str],
    others: list[str],
    hidden: Sequence[tuple[float, Unit]],
    costs: dict[str, int],
    per_image: int,
) -> list[Unit]:
    """Return sentences with distractors at random gaps, and each needle at its depth in tokens."""
    places = [(rng.random() * len(sentences), name, True) for name in others]
    ordered = sorted([*places, *((k, s, False) for k, s in enumerate(sentences))])
    units = [Unit("", per_image, name) if image else Unit(name, costs[name]) for _, name, image in ordered]
    return place_units(units, hidden)


def _draw(rng: random.Random, pool: list[str], n: int) -> list[str]:
    """Return `n` items of `pool`, none twice while there are enough."""
    return rng.sample(pool, n) if n <= len(pool) else rng.choices(pool, k=n)


def training_record(sample: dict[str, Any], options: HaystackOptions) -> dict[str, Any]:
    """Return an MM-NIAH record as a `conversations` record, worded as the benchmark asks."""
    human = sample["context"] + sample["question"] + SHORTLY
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": sample["answer"]}]
    record_id = f"haystack/{options.seed}/{sample['id']}"
    return {"id": record_id, "image": sample["images_list"], "conversations": turns, "meta": sample["meta"]}


def niah_record(sample: dict[str, Any], options: HaystackOptions) -> dict[str, Any]:
    """Return the MM-NIAH record itself."""
    return sample


def _link_images(folder: Path) -> None:
    """Link `images` to dataset/, where MM-NIAH readers expect the pictures: nothing is copied."""
    link = folder / "images"
    if not link.is_symlink():
        link.symlink_to(Path(*[".."] * len(folder.relative_to(dataset()).parts)), target_is_directory=True)


def _source(name: str) -> Any:
    folder = dataset() / name
    manifest = read_manifest(folder)
    if manifest is None:
        fix = "vlm download easy-vqa" if name == "easy-vqa" else f"vlm data organize {name}"
        raise DataError(f"{folder} is missing or not complete", fix=fix)
    return manifest["source"]


def _pools(split: str) -> _Pools:
    digits: dict[str, list[str]] = {word: [] for word in NUMBER_WORDS[:10]}
    for _, record in iter_jsonl(dataset() / "digits" / f"{split}.jsonl"):
        digits[record["conversations"][1]["value"]].append(f"digits/{record['image']}")
    shapes = sorted(p.name for p in (dataset() / "easy-vqa" / split / "images").glob("*.png"))
    photographs = [r for _, r in iter_jsonl(dataset() / "photographs" / "train.jsonl") if r["haystack"] == split]
    return _Pools(
        digits,
        [f"easy-vqa/{split}/images/{name}" for name in shapes],
        [f"photographs/{record['image']}" for record in photographs],
    )
