"""The option that a reply names, as a careful reader finds it: announced, alone, or by its text. Source: ours.

read_label("Option A looks odd. So the answer is C.", ["cat", "dog", "fox"])     # "C"
read_label("A or B", ["cat", "dog"])                                            # "": a reader cannot tell
"""

import re
from collections.abc import Collection, Sequence

from vlm.eval.measures.reply import NAME_BEFORE, answer_text, ends, letters_alone
from vlm.eval.measures.short import announced_tail
from vlm.eval.measures.text import has_words, strip_marks

_MARK = r"[\s\"'“”‘’(\[*:：,，]{0,6}"
ANNOUNCED = re.compile(
    r"(?:(?<!if )(?<!whether )\b(?:(?:final|correct|right|best|my|the) ){0,4}(?:answer|choice|option|solution)s?"
    r"(?: (?:is|are|must be|should be|would be|will be|to (?:this|the) question is|here is)|\s*[:：=])"
    r"|\b(?:i|we)(?:'d|'ll| would| will)? (?:choose|select|pick|go with|say|opt for|answer)"
    r"|答案(?:应该|应当|应)?(?:是|为|选)?|正确(?:选项|答案)(?:是|为)?|故?(?:应)?选择?(?:项)?|答[:：]|答えは|정답은)"
    + _MARK
    + r"(?:(?:clearly|probably|likely|therefore|most likely|thus|simply|indeed|definitely|still|option|choice|letter"
    r"|the option|选项|项)" + _MARK + r"){0,4}([A-Za-z]{1,2})(?![A-Za-z0-9_'’]|-\w)",
    re.IGNORECASE,
)
APPROVED = re.compile(
    r"(?<![A-Za-z0-9_'’])([A-Z]{1,2})[)\]\"']?(?: \w+)? (?:is|would be|must be|seems|looks|appears)(?: to be)?"
    r"(?: clearly| obviously| definitely| therefore)?"
    r" (?:the )?(?:correct|right|true|best|answer|only one that fits|most (?:likely|fitting|suitable|accurate))"
)
REJECTED_BEFORE = re.compile(
    r"(?:\bnot|n't|\bneither|\bnor|\brather than|\binstead of|\bexclude[sd]?|\beliminate[sd]?|\brule[sd]? out|\bunlike"
    r"|\bwithout|不是|不选|排除|除了)(?: \w+)?(?: (?:option|choice|letter|be|the answer))*[\s\"'(]*$",
    re.IGNORECASE,
)
REJECTED_AFTER = re.compile(
    r"[)\]\"']*\s*(?:(?:is|are|was|seems|looks|appears)(?: (?:clearly|also|be|to be|too|obviously))*"
    r" (?:wrong|incorrect|not|false|out|odd|impossible|unlikely|excluded|too)\b"
    r"|(?:,|,? and|,? or|&)(?: [A-Z]\b(?:,|,? and|,? or|&)?)+ (?:are|were)(?: \w+)? (?:wrong|incorrect|not|false|out)\b"
    r"|(?:isn't|cannot|can't|doesn't|does not|fails)\b|不对|不是|不正确|是错|错)"
)
ALTERNATIVE = re.compile(
    r"[)\]\"'.]*\s*(?:,|/|&|\+|、|\bor\b|\band\b|\bas well as\b|或|和|与)\s*(?:also |maybe |perhaps |option )*[(\[\"']*"
    r"([A-Z]{1,2})(?![A-Za-z0-9_'’])(?! (?:is|are|was) (?:wrong|incorrect|not))"
)
CHANGED = re.compile(
    r"(?:^|[.!?;,\n—-]|\bno,?)\s*(?:no,? )?"
    r"(?:wait|actually|correction|on second thought|scratch that|sorry|hmm)[,.:!\s—-]+",
    re.IGNORECASE,
)
CONCLUDED = re.compile(
    r"(?:^|[.!?。\n]\s*|, )(?:so|thus|hence|therefore|overall|in conclusion|所以|因此)[, ，]*", re.IGNORECASE
)
QUESTION = re.compile(r"[^.!?\n]{1,300}\?")
SMALL = re.compile(r"\W*([A-Za-z]{1,2})\W*$|\W*([A-Za-z]{1,2})(?:[.):,：]|\s*[-–—]\s)|\(([A-Za-z]{1,2})\)")
"""A letter of any case: the whole reply, at its start before a mark, in brackets."""


def label(index: int) -> str:
    """Name an option by its index: A to Z, then AA, AB, ..., then BA, BB, ..."""
    return ("" if index < 26 else "A" if index < 52 else "B") + chr(65 + index - 26 * min(index // 26, 2))


def normal_text(text: str) -> str:
    """Normalize a text as MileBench does: marks, outer quotes, case."""
    text = strip_marks(text.replace("\n", " ").replace("\t", " ").strip())
    return text.strip("'").strip('"').strip().lower()


def read_label(reply: str, options: Sequence[str]) -> str:
    """Read a reply to options, by their texts, as a label; "" when it names none or several.

    In this order: the text of one option; what is announced (`the answer is X`, `答案是X`), the last one; a label at
    the start before a mark; the only label that stands alone and is not rejected (`A is wrong`), after a change of mind
    (`Actually, X`) or in a conclusion; the only option whose text is mentioned. Two labels joined by `or` are none.

    Args:
        reply: The raw reply.
        options: Texts in the order of their labels; "" where a text is not known.
    """
    said = ends(answer_text(reply))
    clean, texts = normal_text(said), [normal_text(option) for option in options]
    labels = {label(i) for i in range(len(texts))}
    if clean and texts.count(clean) == 1 and clean.upper() not in labels:
        return label(texts.index(clean))
    if not clean:
        return ""
    named = _named(said, labels)
    if named is not None:
        return named
    announced = normal_text(announced_tail(said))
    return (announced and _by_text(announced, texts)) or _by_text(clean, texts)


def _named(said: str, labels: Collection[str]) -> str | None:
    """Return the label that a reply names, "" for several, None for none."""
    announced = [m for m in ANNOUNCED.finditer(said) if _counts(m, labels, said)]
    approved = [
        m
        for m in APPROVED.finditer(said)
        if m[1] in labels
        and not NAME_BEFORE.search(said[max(0, m.start(1) - 20) : m.start(1)])
        and not _is_rejected(said, m.start(1), m.end(1))
    ]
    if announced or approved:
        last = max([*announced, *approved], key=lambda m: m.start(1))
        later = [kept for m in CHANGED.finditer(said, last.end()) if (kept := _kept(said[m.end() :], labels))]
        if later:
            return later[-1].pop() if len(later[-1]) == 1 else ""
        return "" if _joined(said, last.end(1), last[1].upper(), labels) else last[1].upper()
    start = SMALL.match(said)
    if start and (first := str(start[1] or start[2] or start[3]).upper()) in labels:
        whole = start[1] is not None
        if whole or not (_joined(said, start.end() - 1, first, labels) or _is_rejected(said, 0, start.end() - 1)):
            changed = [m for m in CHANGED.finditer(said) if _kept(said[m.end() :], labels)]
            return first if whole or not changed else _one(said[changed[-1].end() :], labels)
    kept = _kept(said, labels)
    if not kept:
        return None
    if len(kept) == 1:
        return kept.pop()
    for cut in (CHANGED, CONCLUDED):
        tails = [said[m.end() :] for m in cut.finditer(said)]
        if found := [letters for tail in tails if (letters := _kept(tail, labels))]:
            return found[-1].pop() if len(found[-1]) == 1 else ""
    return ""


def _one(text: str, labels: Collection[str]) -> str:
    kept = _kept(text, labels)
    return kept.pop() if len(kept) == 1 else ""


def _counts(match: re.Match[str], labels: Collection[str], said: str) -> bool:
    """Tell whether an announced letter is a label: a capital that is no article, or a small one before a mark."""
    letter = match[1]
    if letter.upper() not in labels or _is_rejected(said, match.start(1), match.end(1)):
        return False
    if letter.islower() or not letter.isupper():
        return re.match(r"\W*$|\W*[.),;:\n]|\s*[-–—]", said[match.end(1) :]) is not None
    return any(place == match.start(1) for place, _ in letters_alone(said, labels))


def _kept(text: str, labels: Collection[str]) -> set[str]:
    """Return the labels that stand alone and are not rejected; those of questions only where there are no others."""
    for part in (QUESTION.sub(" ", text), text):
        found = letters_alone(part, labels)
        if kept := {m.letter for m in found if not _is_rejected(part, m.place, m.place + len(m.letter))}:
            return kept
    return set()


def _is_rejected(text: str, start: int, end: int) -> bool:
    before = REJECTED_BEFORE.search(text[max(0, start - 40) : start])
    return before is not None or REJECTED_AFTER.match(text, end) is not None


def _joined(text: str, end: int, letter: str, labels: Collection[str]) -> bool:
    """Tell whether another label follows as an alternative: `B or C`."""
    other = ALTERNATIVE.match(text, end)
    return other is not None and other[1] in labels and other[1] != letter


def _by_text(clean: str, texts: Sequence[str]) -> str:
    """Return the label of the only option whose text is mentioned; a text inside a longer mentioned one is none."""
    inside = [i for i, text in enumerate(texts) if text and has_words(clean, text)]
    long = [i for i in inside if not any(i != j and has_words(texts[j], texts[i]) for j in inside)]
    rejected = [i for i in long if re.search(rf"\b(?:not|isn't|no)\s+(?:an?\s+|the\s+)?{re.escape(texts[i])}\b", clean)]
    kept = [i for i in long if i not in rejected]
    return label(kept[0]) if len(kept) == 1 else ""
