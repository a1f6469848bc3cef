"""MVBench: frames, question text, and letters from replies. Source: the published evaluators"""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from vlm.core.errors import DataError
from vlm.core.sample.media import frame_indices
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.choice import read_letter
from vlm.eval.scorers.milebench import milebench_process

ALWAYS = (-100_000.0, 100_000.0)
"""The published bound, in seconds, of a video that has none."""


def mvbench_frame_indices(
    bound: Sequence[float] | None,
    fps: float,
    max_frame: int,
    first_idx: int = 0,
    num_segments: int = 16,
    *,
    compat: Compat = "upstream",
) -> list[int]:
    """The middle frames of `num_segments` equal parts between `first_idx` and `max_frame`, or of a bound in seconds.

    The same in both modes.
    """
    start, end = (bound or ALWAYS)[:2]
    return frame_indices(max_frame + 1, fps, num_segments, (max(start, first_idx / fps), end))


def mvbench_qa_template(data: Mapping[str, Any], *, compat: Compat = "upstream") -> dict[str, str]:
    """`question` with its lettered candidates, and `answer` as `(B) text`.

    upstream: an answer that is no candidate is `(@) text`, which no reply can match. fixed: it is refused.

    Raises:
        DataError: fixed, for an answer that is no candidate.
    """
    candidates, answer = data["candidates"], data["answer"]
    places = [i for i, candidate in enumerate(candidates) if candidate == answer]
    if compat == "fixed" and not places:
        raise DataError(f"the answer {answer!r} is no candidate", expected=f"one of {candidates}")
    lines = [f"({chr(65 + i)}) {candidate}" for i, candidate in enumerate(candidates)]
    question = "\n".join([f"Question: {data['question']}", "Options:", *lines, ""]).rstrip()
    return {"question": question, "answer": f"({chr(65 + places[-1]) if places else '@'}) {answer}"}


def mvbench_check_ans(pred: str, gt: str, *, compat: Compat = "upstream") -> bool:
    """Whether the reply names the option of a reference like `(A) text`.

    upstream: of the lower-case first words one is inside the other, so that an empty reply, `.`, and a reply that
    starts with a space are right and `option A` is wrong. fixed: the letter of the reply, or the option's whole text.

    Raises:
        IndexError: upstream, for a reference without a text (as published).
    """
    if compat == "fixed":
        letter, _, text = gt.strip().removeprefix("(").partition(")")
        options = dict.fromkeys("ABCDE" + (letter if letter in tuple(ascii_uppercase) else ""), "")
        found = pred.replace("Answer: ", "")
        same = milebench_process(found) == milebench_process(text) != ""
        return same or read_letter(found, options) == letter
    word = pred.replace("Answer: ", "").lower().split(" ")[0]
    gold, _, text = gt.lower().partition(" ")
    if not text:
        raise IndexError("a reference without a text")
    return word.replace(".", "") in gold or gold in word
