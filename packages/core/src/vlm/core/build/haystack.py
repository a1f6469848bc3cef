"""Image haystacks: a long document of everyday sentences and pictures that hides exactly one handwritten digit, or
two of them and a colour.

Training records are `conversations` JSONL, test records follow MM-NIAH. Images are named relative to `dataset/`,
so that nothing is copied. Sample i is a function of (seed, split, i) and of the sources alone.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vlm.core.build.document import Unit, fit, place
from vlm.core.build.jsonl import NUMBER_WORDS, write_jsonl
from vlm.core.build.sentences import SENTENCES
from vlm.core.errors import ConfigError, DataError
from vlm.core.home import dataset, locked, write_json
from vlm.core.manifest import read_manifest, sha256_of
from vlm.core.records import iter_jsonl
from vlm.core.transfer import disk_errors

QUESTION = "Which digit is hidden?"
FIRST, LAST = "Which digit comes first?", "Which digit comes last?"
COLOUR, COLOUR_QUESTION = "The secret colour is {}.", "What is the secret colour?"
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
"""What is hidden in text: words that the pictures' questions use too."""

TASKS = {"hidden": ("digit-haystack",), "order": ("first", "last", "colour")}
"""Files of questions that each kind of haystack gives for a test."""

SHORTLY = "\nAnswer the question using a single word or phrase."
"""What the MM-NIAH prompt appends to a question (the published evaluators); training records carry it too."""

MARKERS = 2
"""Tokens around the visual tokens of an image: <img> and </img>."""

PHOTOGRAPHS = 0.2
"""Part of the distractors that are photographs; the others are easy-VQA shapes."""

Count = Callable[[str], int]


@dataclass(frozen=True)
class HaystackOptions:
    """`tokens`: length of a whole human turn, an image counting `tokens_per_image` + 2. `times`: the length as a
    multiple of the training length, recorded only. `image_share`: part of the tokens that images take. `task`: `hidden`
    asks for the one digit there is; `order` hides two different digits and a sentence with a colour, and asks three
    questions of each document: which digit comes first, which last, and the colour."""

    tokens: int
    tokens_per_image: int
    count: int
    split: Literal["train", "test"] = "train"
    seed: int = 0
    image_share: float = 0.5
    times: str = "1x"
    task: Literal["hidden", "order"] = "hidden"


class Hidden(NamedTuple):
    """Something hidden at a depth from 0 to 1, and the question it answers."""

    depth: float
    unit: Unit
    question: str
    answer: str


@dataclass(frozen=True)
class _Pools:
    """Image names relative to dataset/, by role; training and test share none."""

    digits: dict[str, list[str]]
    shapes: list[str]
    photographs: list[str]


def build_haystack(out: str, options: HaystackOptions, *, tokenizer: Path | None = None) -> Path:
    """Write `dataset/<out>/train.jsonl`, or for test `annotations/digit-haystack.jsonl`; a no-op when it is there.

    Args:
        tokenizer: a folder with `tokenizer.json`, or that file; None counts words and punctuation marks.

    Returns:
        The file of records; of a test with several questions, that of the first (files are named after TASKS).

    Raises:
        DataError: digits, easy-vqa or photographs are missing. ConfigError: no document fits the budget.
    """
    folder = dataset() / out
    train = options.split == "train"
    names = ["train.jsonl"] if train else [f"annotations/{task}.jsonl" for task in TASKS[options.task]]
    tokenizer = tokenizer / "tokenizer.json" if tokenizer and tokenizer.is_dir() else tokenizer
    count = counter(tokenizer)
    made_of = {"options": asdict(options), "tokenizer": sha256_of(tokenizer) if tokenizer else "words"}
    made_of["sources"] = {name: _source(name) for name in ("digits", "easy-vqa", "photographs")}
    described = json.loads(json.dumps(made_of))
    about = folder / f"manifest-{options.split}.json"
    with disk_errors(folder), locked(folder, f"vlm data build haystack --out {out}"):
        known = json.loads(about.read_text()) if about.exists() else {}
        if known.get("made_of") == described and known["sha256"] == _digests(folder, names):
            return folder / names[0]
        about.unlink(missing_ok=True)
        (folder / names[0]).parent.mkdir(parents=True, exist_ok=True)
        documents = list(haystacks(options, _pools(options.split), count))
        if train:
            write_jsonl(folder / names[0], [training_record(document, options) for document in documents])
        else:
            for name, records in zip(names, zip(*documents, strict=True), strict=True):
                write_jsonl(folder / name, records)
            _link_images(folder)
            counts = dict.fromkeys(TASKS[options.task], len(documents))
            write_json(folder / "mini.json", {"benchmark": folder.name, "seed": options.seed, "counts": counts})
        lengths = [document[0]["meta"]["context_length"] for document in documents]
        statistics = {"records": len(documents), "shortest": min(lengths), "longest": max(lengths)}
        write_json(about, {"made_of": described, "sha256": _digests(folder, names), "statistics": statistics})
    return folder / names[0]


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    """sha256 of the files that are there, by name."""
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}


def counter(tokenizer: Path | None) -> Count:
    """Tokens of a text by a `tokenizer.json`, or without one the words and punctuation marks in it."""
    if tokenizer is None:
        return lambda text: len(text.replace(".", " .").replace("?", " ?").split())
    if not tokenizer.is_file():
        raise ConfigError(f"no such file: {tokenizer}", fix="vlm data tokenizer --out DIR FILE.jsonl")
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


def haystacks(options: HaystackOptions, pools: _Pools, count: Count) -> Iterator[list[dict[str, Any]]]:
    """`options.count` documents, each as the MM-NIAH records of its questions. Of the one digit, depths cover 0..1
    evenly and values are balanced, each in its own order; the others are drawn."""
    rng = random.Random(f"haystack/{options.seed}/{options.split}")
    depths = rng.sample(range(options.count), options.count)
    answers = rng.sample([i % 10 for i in range(options.count)], options.count)
    costs = {sentence: count(sentence + " ") for sentence in SENTENCES}
    per_image = options.tokens_per_image + MARKERS
    for i in range(options.count):
        rng = random.Random(f"haystack/{options.seed}/{options.split}/{i}")
        answer = NUMBER_WORDS[answers[i]]
        if options.task == "hidden":
            unit = Unit("", per_image, rng.choice(pools.digits[answer]))
            hidden = [Hidden((depths[i] + 0.5) / options.count, unit, QUESTION, answer)]
        else:
            hidden = _order(answer, rng, pools, count, per_image)
        yield _haystack(i, hidden, rng, options, pools, count, costs)


def _order(answer: str, rng: random.Random, pools: _Pools, count: Count, per_image: int) -> list[Hidden]:
    """The digit `answer`, later another digit, and a colour in words anywhere."""
    last = rng.choice([word for word in pools.digits if word != answer])
    colour = rng.choice(COLOURS)
    early, late = sorted((rng.random(), rng.random()))
    text = COLOUR.format(colour)
    return [
        Hidden(early, Unit("", per_image, rng.choice(pools.digits[answer])), FIRST, answer),
        Hidden(late, Unit("", per_image, rng.choice(pools.digits[last])), LAST, last),
        Hidden(rng.random(), Unit(text, count(text + " ")), COLOUR_QUESTION, colour),
    ]


def _haystack(
    i: int,
    hidden: list[Hidden],
    rng: random.Random,
    options: HaystackOptions,
    pools: _Pools,
    count: Count,
    costs: dict[str, int],
) -> list[dict[str, Any]]:
    per_image = options.tokens_per_image + MARKERS
    asked = max((one.question for one in hidden), key=count)
    room = options.tokens - count("\n" + asked + SHORTLY)
    needles = [one.unit.image for one in hidden if one.unit.image]
    n_images = max(len(needles), round(room * options.image_share / per_image))
    words = sum(one.unit.cost for one in hidden if not one.unit.image)
    if room < n_images * per_image + words + max(costs.values()):
        raise ConfigError(
            f"{options.tokens} tokens do not hold {len(needles)} image(s) of {per_image}, a sentence and the question",
            fix="raise --tokens or lower --tokens-per-image or --image-share",
        )
    n_others = n_images - len(needles)
    n_photographs = min(len(pools.photographs), round(PHOTOGRAPHS * n_others))
    others = rng.sample(pools.photographs, n_photographs)
    others += _draw(rng, pools.shapes, n_others - n_photographs)
    rng.shuffle(others)

    def make(target: int) -> tuple[int, tuple[int, int, str, list[Unit]]]:
        units = _arrange(rng, _fill(rng, target, costs), others, hidden, costs, per_image)
        context = "".join("<image>\n" if unit.image else f"{unit.text} " for unit in units).rstrip(" ") + "\n"
        text = sum(map(count, (context + asked + SHORTLY).split("<image>")))
        return text + n_images * per_image, (text + n_images * per_image, text, context, units)

    total, text, context, units = fit(options.tokens, room - n_images * per_image - words, make, what="document")
    images = [unit.image for unit in units if unit.image]
    meta = {
        "context_length": total,
        "context_length_text": text,
        "context_length_image": n_images * per_image,
        "num_images": n_images,
        "needles": needles,
        "choices": None,
        "choices_image_path": None,
        "times": options.times,
    }
    document = {"id": i, "images_list": images, "context": context}
    return [
        {
            **document,
            "question": one.question,
            "answer": one.answer,
            "meta": {"placed_depth": [round(_before(one.unit, units, count) / total, 4)], **meta},
        }
        for one in hidden
    ]


def _before(unit: Unit, units: list[Unit], count: Count) -> int:
    """Tokens of a document before one of its units."""
    ahead = units[: next(k for k, other in enumerate(units) if other is unit)]
    text = "".join("<image>\n" if other.image else f"{other.text} " for other in ahead)
    return sum(map(count, text.split("<image>"))) + sum(other.cost for other in ahead if other.image)


def _fill(rng: random.Random, target: int, costs: dict[str, int]) -> list[str]:
    """Random sentences of `target` tokens in all, as near as the shortest sentence allows."""
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
    hidden: list[Hidden],
    costs: dict[str, int],
    per_image: int,
) -> list[Unit]:
    """Sentences with distractors at random gaps, and what is hidden where its depth of the tokens lies before it."""
    places = [(rng.random() * len(sentences), name, True) for name in others]
    ordered = sorted([*places, *((k, s, False) for k, s in enumerate(sentences))])
    units = [Unit("", per_image, name) if image else Unit(name, costs[name]) for _, name, image in ordered]
    return place(units, [(one.depth, one.unit) for one in hidden])


def _draw(rng: random.Random, pool: list[str], n: int) -> list[str]:
    """`n` of `pool`, none twice while there are enough."""
    return rng.sample(pool, n) if n <= len(pool) else rng.choices(pool, k=n)


def training_record(samples: list[dict[str, Any]], options: HaystackOptions) -> dict[str, Any]:
    """The MM-NIAH records of one document as a `conversations` record, worded as the benchmark will ask. Several
    questions come in an order of their own, so that each is now and then the first."""
    record_id = f"haystack/{options.seed}/{samples[0]['id']}"
    asked = random.Random(record_id).sample(samples, len(samples))
    turns: list[dict[str, str]] = []
    for sample in asked:
        human = (sample["context"] if not turns else "") + sample["question"] + SHORTLY
        turns += [{"from": "human", "value": human}, {"from": "gpt", "value": sample["answer"]}]
    return {"id": record_id, "image": asked[0]["images_list"], "conversations": turns, "meta": asked[0]["meta"]}


def _link_images(folder: Path) -> None:
    """`images` leads back to dataset/, where MM-NIAH readers expect the pictures: nothing is copied."""
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
