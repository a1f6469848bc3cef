"""Every recorded case that holds an upstream fault, with our decision and why. One table for all golden runners.

A case is looked up by the file it comes from, a pattern on its id, and the key that marks the fault in it (`raises`,
`upstream_warning`, `quirk`; empty: any case with that id). The first match counts. A runner fails on a marked case
without a decision.
"""

from fnmatch import fnmatch
from typing import Any, NamedTuple


class Decision(NamedTuple):
    """`ours` names what the runner checks instead of the recorded outcome."""

    file: str
    match: str
    flag: str
    ours: str
    why: str


DECISIONS = [
    # positions.json ---------------------------------------------------------------------------------------------
    Decision(
        "positions.json",
        "err_*version*",
        "raises",
        "no version",
        "`positions` takes strides, not version names; recipes name the version and their schema refuses others",
    ),
    Decision(
        "positions.json",
        "err_*without_stride",
        "raises",
        "no version",
        "`strides=None` means 0, 1, 2, ...; the recipe schema asks for a stride where the version needs one",
    ),
    Decision(
        "positions.json",
        "*",
        "raises",
        "exact rule",
        "upstream gives a float32 end to arange and gets a wrong number of values far from 0 or with inexact steps",
    ),
    Decision(
        "positions.json",
        "*masked_tail*",
        "",
        "no mask",
        "masked tokens got position 1: mask = (ids != pad) takes a literal </s> for padding; we have no such mask",
    ),
    Decision(
        "positions.json",
        "*odd_count*",
        "",
        "last bits",
        "stride / tokens is not exact in binary: upstream accumulates float32 steps, we round once from float64",
    ),
    # templates.json ---------------------------------------------------------------------------------------------
    Decision(
        "templates.json",
        "*more_placeholders_than_images*",
        "",
        "refused",
        "a placeholder without an image is a broken record, not literal text",
    ),
    Decision(
        "templates.json",
        "*truncated_in_image*",
        "",
        "refused",
        "truncation must never cut image tokens (upstream swaps in a random other sample)",
    ),
    Decision(
        "templates.json",
        "*question_contains_role_text*",
        "",
        "text is text",
        "what a user quotes never becomes structure; upstream raises or lets it open a turn",
    ),
    Decision(
        "templates.json",
        "*answer_contains_separator*",
        "",
        "text is text",
        "a quoted separator never becomes structure; upstream ends the turn there or ignores the sample",
    ),
    Decision(
        "templates.json",
        "*two_placeholders_one_turn*",
        "",
        "placeholders kept",
        "upstream collapses the placeholders of a turn into one and then has an image too many",
    ),
    Decision(
        "templates.json",
        "*image_longer_than_max_length/*legacy*",
        "",
        "not cut, answers supervised",
        "as below; and samples this long skip upstream's length check, so its second answer is shifted by one token: "
        "the colon of the header is trained, the closing </s> is not",
    ),
    Decision(
        "templates.json",
        "*image_longer_than_max_length*",
        "",
        "not cut",
        "upstream cuts this sample in its collator, counting an image as one token; we cut once, after expansion",
    ),
    Decision(
        "templates.json",
        "*padded_to_max_length*",
        "",
        "not padded",
        "padding belongs to the batch; a sample has none",
    ),
    Decision(
        "templates.json",
        "*ends_with_human*",
        "",
        "answers supervised",
        "upstream ignores the sample (Hermes-2, LLaVA) or trains on the trailing question (internlm2-chat)",
    ),
    Decision(
        "templates.json",
        "*",
        "upstream_warning",
        "answers supervised",
        "upstream compares re-tokenised lengths and masks the whole sample when they differ; our labels follow "
        "characters, so an empty answer or a legacy tokenizer does not void the other rounds",
    ),
    # packing.json -----------------------------------------------------------------------------------------------
    Decision(
        "packing.json",
        "*overflow*",
        "",
        "not split",
        "cutting a sample separates an answer from its question and fails for multi-tile images; samples stay whole",
    ),
    Decision(
        "packing.json",
        "*too_long*",
        "",
        "cut before packing",
        "the encoder truncates and the ledger counts it; a sample that is still too long is an error, not cut here",
    ),
    Decision(
        "packing.json",
        "*too_many_images*",
        "",
        "refused",
        "upstream logs and drops the sample; we raise, so that the stream can enter it in the ledger",
    ),
    Decision(
        "packing.json",
        "*strict*",
        "",
        "not padded",
        "strict mode pads tokens and tiles to the limits (and forgets float positions); our rows keep their length, "
        "and the packs are the same",
    ),
    Decision(
        "packing.json",
        "micro_batch*",
        "",
        "rows one by one",
        "upstream stacks the packs of a step in one padded tensor, fills up with copies of the first without labels, "
        "and fails when packs differ in length; we run row by row, and repeat one with weight 0 where ranks differ",
    ),
    # <model>/cases.json -------------------------------------------------------------------------------------------
    Decision(
        "cases.json",
        "*fewer_image_tokens*",
        "quirk",
        "refused",
        "an image that lost tokens is a broken sample; upstream fills in the first features and trains on, or "
        "multiplies the loss by 0",
    ),
    Decision(
        "cases.json",
        "*not_multiple*",
        "",
        "dropped by option",
        "upstream's ConvNeXt loses pixels beyond a multiple of its stride in silence; ours refuses such a size unless "
        "`encoder.drop_remainder` is set, which the runner does",
    ),
    Decision(
        "cases.json",
        "*stale_ntk*",
        "quirk",
        "fresh",
        "the scaled base is a function of the present length; upstream keeps the table of a longer input before it",
    ),
    Decision(
        "cases.json",
        "*ntk_flash*",
        "quirk",
        "clean NTK",
        "the length is the length; one of upstream's two attention paths adds the cache to the highest position, "
        "about twice the length, while it decodes",
    ),
]

RENAMED_TEMPLATES = {
    # upstream's Hermes-2 text changed in July 2024; ours keeps the name for the text that the weights were trained with
    "Hermes-2": "Hermes-2-2024-07",
}


def decide(file: str, case: dict[str, Any]) -> Decision | None:
    """The decision on a case, None if it is to be reproduced as recorded."""
    for decision in DECISIONS:
        if (
            decision.file == file
            and fnmatch(case["id"], decision.match)
            and (not decision.flag or decision.flag in case)
        ):
            return decision
    return None
