"""Every upstream fault that a recorded case may hold, with our decision and why. One table for all golden runners.

A decision applies to a case by what it holds: `when` sees the recorded entry and the facts that the runner adds to it.
The first match counts. A case that records a fault (`raises`, `upstream_warning`, `quirk`) without a decision fails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Case = dict[str, Any]

FAULTS = ("raises", "upstream_warning", "quirk")
"""Keys that mark a recorded fault."""

IMAGE = "<image>"
MARKUP = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "ASSISTANT: ")
VERSIONS = ("default", "v2pe_fix", "v2pe_rnd")


@dataclass(frozen=True)
class Decision:
    """`ours` names what the runner checks instead of the recorded outcome."""

    section: str
    ours: str
    when: Callable[[Case], bool]
    why: str


def inexact(case: Case) -> bool:
    """A stride divided by the tokens of a tile that binary numbers cannot hold."""
    drawn = case.get("drawn_strides") or []
    strides = [s for item in drawn for s in (item if isinstance(item, list) else [item])] or [case.get("stride")]
    increments = [Fraction(s) / case["num_image_token"] for s in strides if s is not None]
    return case["version"] != "default" and any(i.denominator & (i.denominator - 1) for i in increments)


def values(case: Case) -> list[str]:
    """The texts of a conversation."""
    return [turn["value"] for turn in case["conversations"]]


def marks(case: Case) -> int:
    """Image placeholders in a conversation."""
    return sum(value.count(IMAGE) for value in values(case))


def asked(case: Case) -> int:
    """Image placeholders in the questions: in an answer they are text."""
    return sum(turn["value"].count(IMAGE) for turn in case["conversations"] if turn["from"] == "human")


def counts_differ(case: Case) -> bool:
    """More placeholders than images; or, where upstream fails too, fewer."""
    images = len(case["num_image_token_list"])
    return asked(case) > images or ("raises" in case and asked(case) < images)


def longer_than_limit(case: Case) -> bool:
    """A LLaVA sample with images beyond the limit, recorded whole."""
    return is_llava(case) and marks(case) > 0 and len(case.get("input_ids", [])) > case["model_max_length"]


def is_llava(case: Case) -> bool:
    return bool(case["template"].startswith("llava"))


def markup(case: Case) -> list[str]:
    """What quotes structure; beside InternVL2.5's template, every special token of its tokenizer."""
    return [*MARKUP, *(case["specials"] if case["template"] == "internvl2_5" else ())]


def opens_with_answer(case: Case) -> bool:
    return next(turn["from"] for turn in case["conversations"] if turn["from"] != "system") == "gpt"


def answers(case: Case) -> int:
    return sum(turn["from"] == "gpt" for turn in case["conversations"])


def too_long(case: Case) -> bool:
    return any(s["tokens"] > case["config"]["max_packed_tokens"] for s in case["samples"])


def too_many_tiles(case: Case) -> bool:
    return any(s["pixel_rows"] > case["config"]["num_images_expected"] for s in case["samples"])


DECISIONS = [
    Decision(
        "positions/cases",
        "no version",
        lambda c: (
            "raises" in c and (c["version"] not in VERSIONS or (c["version"] == "v2pe_fix" and c.get("stride") is None))
        ),
        "`positions` takes strides, not version names, and `strides=None` means 0, 1, 2, ...; recipes name the "
        "version, and their schema refuses others and asks for a stride where one is needed",
    ),
    Decision(
        "positions/cases",
        "exact rule",
        lambda c: "raises" in c,
        "upstream gives a float32 end to arange and gets a wrong number of values far from 0 or with inexact steps",
    ),
    Decision(
        "positions/cases",
        "no mask",
        lambda c: "masked_tail" in c,
        "masked tokens got position 1: mask = (ids != pad) takes a literal </s> for padding; we have no such mask",
    ),
    Decision(
        "positions/cases",
        "last bits",
        inexact,
        "stride / tokens is not exact in binary: upstream accumulates float32 steps, we round once from float64",
    ),
    Decision(
        "templates/training",
        "put in front",
        lambda c: "raises" in c and asked(c) == 0 and len(c.get("num_image_token_list", [])) == 1,
        "a single image without a placeholder opens the first question, as the published data set code has it before "
        "it comes to this function",
    ),
    Decision(
        "templates/training",
        "refused",
        lambda c: "num_image_token_list" in c and counts_differ(c),
        "a placeholder without an image is a broken record, not literal text; so is an image without a placeholder",
    ),
    Decision(
        "templates/training",
        "refused",
        lambda c: "input_ids" in c and c["image_ids"] < sum(c.get("num_image_token_list", [])),
        "truncation must never cut image tokens (upstream swaps in a random other sample)",
    ),
    Decision(
        "templates/training",
        "text is text",
        lambda c: any(text in value for value in values(c) for text in markup(c)),
        "quoted roles and separators never become structure; upstream raises, ends the turn there, lets the quote open "
        "a turn, or ignores the sample",
    ),
    Decision(
        "templates/training",
        "placeholders kept",
        lambda c: is_llava(c) and any(value.count(IMAGE) > 1 for value in values(c)),
        "upstream collapses the placeholders of a turn into one and then has an image too many",
    ),
    Decision(
        "templates/training",
        "not cut, answers supervised",
        lambda c: longer_than_limit(c) and c["legacy"] and answers(c) > 1,
        "as below; and samples this long skip upstream's length check, so its second answer is shifted by one token: "
        "the colon of the header is trained, the closing </s> is not",
    ),
    Decision(
        "templates/training",
        "not cut",
        longer_than_limit,
        "upstream cuts this sample in its collator, counting an image as one token; we cut once, after expansion",
    ),
    Decision(
        "templates/training",
        "not padded",
        lambda c: 0 in c.get("attention_mask", []),
        "padding belongs to the batch; a sample has none",
    ),
    Decision(
        "templates/training",
        "opening answer left out",
        lambda c: c["template"] == "internvl2_5" and opens_with_answer(c),
        "an answer to nothing: InternVL2.5's code trains on it; our reader leaves it out, as that of the others does",
    ),
    Decision(
        "templates/training",
        "",
        lambda c: c["template"] == "internvl2_5" and any(v.startswith("\n") for v in values(c)),
        "the newline of the header and the first of an answer are one token, which belongs to where it begins",
    ),
    Decision(
        "templates/training",
        "answers supervised",
        lambda c: c["template"] != "internvl2_5" and c["conversations"][-1]["from"] == "human",
        "upstream ignores the sample (Hermes-2, LLaVA) or trains on the trailing question (internlm2-chat)",
    ),
    Decision(
        "templates/training",
        "answers supervised",
        lambda c: "upstream_warning" in c,
        "upstream compares re-tokenized lengths and masks the whole sample when they differ; our labels follow "
        "characters, so an empty answer or a legacy tokenizer does not void the other rounds",
    ),
    Decision(
        "packing/packs",
        "not split",
        lambda c: c["config"]["allow_overflow"],
        "cutting a sample separates an answer from its question and fails for multi-tile images; samples stay whole",
    ),
    Decision(
        "packing/packs",
        "refused",
        lambda c: too_many_tiles(c) or too_long(c),
        "upstream logs and drops a sample with too many images, and cuts one with too many tokens; we raise, so that "
        "the stream can enter the first in the ledger, and the encoder has truncated the second before it gets here",
    ),
    Decision(
        "packing/rows",
        "not padded",
        lambda c: c["config"]["strict_mode"],
        "strict mode pads tokens and tiles to the limits (and forgets float positions); our rows keep their length, "
        "and the packs are the same",
    ),
    Decision(
        "packing/rows",
        "not split",
        lambda c: c["config"]["allow_overflow"],
        "rows of upstream's packs are the same; that it cuts samples, or fails to, is decided for the packs",
    ),
    Decision(
        "packing/micro_batches",
        "rows one by one",
        lambda c: True,
        "upstream stacks the packs of a step in one padded tensor, fills up with copies of the first without labels, "
        "and fails when packs differ in length; we run row by row, and repeat one with weight 0 where ranks differ",
    ),
    Decision(
        "sharding/splits",
        "padded",
        lambda c: "ring_raises" in c or not c["divisible"],
        "upstream fails or loses the end of a row that does not divide by the processes; we pad it",
    ),
    Decision(
        "models/cases",
        "refused",
        lambda c: c["placeholders"] != c["features"],
        "an image that lost tokens is a broken sample; upstream fills in the first features and trains on, or "
        "multiplies the loss by 0",
    ),
    Decision(
        "models/cases",
        "dropped by option",
        lambda c: c["remainder"],
        "upstream's ConvNeXt loses pixels beyond a multiple of its stride in silence; ours refuses such a size unless "
        "`encoder.drop_remainder` is set, which the runner does",
    ),
    Decision(
        "models/cases",
        "unscaled",
        lambda c: "quirk" in c and c["kind"] != "vision" and c["scaled"] and "4.37" in c.get("computed_by", ""),
        "an older Qwen2 knows no rope scaling and ignores the one in the configuration; ours applies it past the "
        "limit, as newer libraries do, and computes the old result with `language: {rope_scaling: null}`",
    ),
    Decision(
        "models/cases",
        "fresh",
        lambda c: "in.first_input_ids" in c["names"],
        "the scaled base is a function of the present length; upstream keeps the table of a longer input before it",
    ),
    Decision(
        "models/cases",
        "clean NTK",
        lambda c: (
            c["kind"] == "generate"
            and "quirk" in c
            and c.get("attention") == "flash_attention_2"
            and c.get("rope_pos_id_version") == "default"
        ),
        "the length is the length; one of upstream's two attention paths adds the cache to the highest position, "
        "about twice the length, while it decodes",
    ),
]

OTHER_TEXTS = {"Hermes-2": "Hermes-2-2024-07"}
"""Published template -> ours with the text that the published code has now. Ours keeps the plain name for the text that
the weights were trained with."""

TRAINED_BY_SLIP = {"--freeze_backbone True": {"language_model.lm_head.weight"}}
"""Flags of a published ConvLLaVA stage -> what its run trains beyond our recipe: the flag freezes the inner model,
which has no head."""


def decide(section: str, case: Case, **facts: Any) -> Decision | None:
    """Return the decision on a case, None if it is to be reproduced as recorded.

    Args:
        section: the kind of case.
        case: the recorded entry.
        facts: what the runner knows beside it; `when` sees both.

    Raises:
        AssertionError: a recorded fault without a decision.
    """
    for decision in DECISIONS:
        if decision.section == section and decision.when({**case, **facts}):
            return decision
    flagged = {key: case[key] for key in FAULTS if case.get(key)}
    assert not flagged, f"{case['id']}: an upstream fault without a decision: {flagged}"
    return None
