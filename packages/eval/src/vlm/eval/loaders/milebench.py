"""MileBench: 29 sets, `{Set}/{Set}.json`, with many images per question, cut at the front to a token budget."""

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.home import read_json
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import FETCH, CountTokens, Item, Items, approximate_tokens, get, inside, user

CHOICES = "\nChoice list: \n"
LETTER = "\nAnswer with the option's letter from the given choices directly."
NO_LETTERS = "GPR1200"
"""The only set whose options are listed without letters."""


def milebench_prompt(
    record: dict[str, Any],
    task_instructions: Sequence[str],
    dataset_name: str,
    max_context_len: int = 512_000,
    n_tokens_per_image: int = 256,
    *,
    count_tokens: CountTokens = len,
    choices: str = CHOICES,
    letter: str = LETTER,
) -> tuple[str, list[str]]:
    """Return the question with `<image>` marks, and the names of the images that are left, as V2PE asks.

    The instruction is always kept; the rest is kept from the end to the front within the budget. As published, images
    are paired with marks from the end: an image without a mark shifts the pairing. Source: the published evaluators.

    Args:
        record: An entry of the set's `data`.
        task_instructions: Those of the set.
        dataset_name: Name of the set.
        max_context_len: Budget in tokens.
        n_tokens_per_image: Cost of an image in tokens.
        count_tokens: Cost of a text; by default a character is a token.
        choices: What precedes the options.
        letter: What follows the options.
    """
    task = record["task_instance"]
    context, names = task["context"], list(task["images_path"])
    if "choice_list" in task:
        lettered = dataset_name != NO_LETTERS
        lines = [
            f"{chr(65 + i)}. {option}" if lettered else str(option) for i, option in enumerate(task["choice_list"])
        ]
        context += choices + "\n".join(lines) + letter
    for i in range(1, len(names) + 1):
        context = context.replace(f"{{image#{i}}}", "<image>").replace(f"{{table#{i}}}", "<image>")
    instruction = task_instructions[record["task_instruction_id"]]
    room = max_context_len - count_tokens(instruction)
    kept: list[str] = []
    images: list[str] = []
    begins_with_image = False
    for fragment in reversed(context.split("<image>")):
        cost = count_tokens(fragment)
        if cost > room:
            if not kept:
                kept.append(_tail(fragment, room, count_tokens))
            break
        begins_with_image = False
        kept.append(fragment)
        room -= cost
        if n_tokens_per_image > room:
            break
        if names:
            begins_with_image = True
            images.append(names.pop())
            room -= n_tokens_per_image
    body = "<image>".join(reversed(kept))
    return instruction + "\n" + ("<image>" if begins_with_image else "") + body, images[::-1]


def _tail(value: str, room: int, count_tokens: CountTokens) -> str:
    """Return the longest end of `value` of at most `room` tokens."""
    start = bisect_left(range(len(value)), True, key=lambda i: count_tokens(value[i:]) <= room)
    return value[start:]


def load_milebench(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load all sets of the table; the group is the set. `count_tokens` measures the budget.

    Source: the published evaluators.
    """
    items, options = Items(), benchmark.options
    count = count_tokens or approximate_tokens
    for name in [name for sets in options["tasks"].values() for name in sets]:
        path = folder / name / f"{name}.json"
        content = read_json(path, fix=FETCH)
        about = get(content, "meta_data", dict, str(path))
        instructions, kind = (
            get(about, "task_instruction", list, str(path)),
            get(about, "question_type", str, str(path)),
        )
        for row, record in enumerate(get(content, "data", list, str(path))):
            where = f"{path}:{row}"
            _check(record, kind, len(instructions), benchmark.scorer_of(name), where)
            question, names = milebench_prompt(
                record,
                instructions,
                name,
                options["max_context_len"],
                options["n_tokens_per_image"],
                count_tokens=count,
                choices=benchmark.prompt["choices"],
                letter=benchmark.prompt["letter"],
            )
            task = record["task_instance"]
            every = [inside(folder / name / "images", image, where) for image in task["images_path"]]
            shown = [inside(folder / name / "images", image, where) for image in names]
            choices = [str(option) for option in task.get("choice_list", [])]
            meta = {"n_images": len(every), "shown_images": len(shown)} | ({"choice_list": choices} if choices else {})
            about_needle = record.get("sub_meta_data") or {}
            meta |= {key: about_needle[key] for key in ("context_length",) if key in about_needle}
            item_id, gold = f"{name}/{record['sample_id']}", str(record["response"])
            items.add(Item(item_id, user(question, shown, where), gold, name, meta), where=where, images=every)
    return items.finish(benchmark, folder)


def _check(record: Any, kind: str, n_instructions: int, scorer: str, where: str) -> None:
    get(record, "sample_id", (int, str), where)
    get(record, "response", (str, int, float), where)
    if not 0 <= get(record, "task_instruction_id", int, where) < n_instructions:
        raise DataError(f"{where}: task_instruction_id", expected=f"below {n_instructions}")
    task = get(record, "task_instance", dict, where)
    get(task, "context", str, where)
    get(task, "images_path", list, where)
    by_choice = scorer == "milebench_multichoice"
    if by_choice != (kind == "multi-choice"):
        raise DataError(f"{where}: question type {kind!r}", expected=f"what {scorer} scores")
    if by_choice and record["response"] not in get(task, "choice_list", list, where):
        raise DataError(f"{where}: {record['response']!r} is not an option", expected="the answer among the options")


LOADERS = {"milebench": load_milebench}
