"""Short answers in replies, and whether they are the reference: what a person would say. Source: ours.

same_answer("The value is **1,000**.", "1000")        # True
same_answer("63 or 64", "63")                         # False: two answers are none
"""

import re
from typing import NamedTuple

from vlm.eval.measures.reply import answer_text, ends
from vlm.eval.measures.text import ARTICLES, VQA_NUMBERS, vqa_normalize

_IS = r"(?:is|are|was|were|would be|should be|must be|equals|reads|says|shows)"
ANNOUNCED = re.compile(
    r"(?:(?<!if )(?<!whether )\b(?:(?:final|correct|right|best|short) )?(?:answer|result|conclusion)s?"
    r"(?:\s+to (?:this|the|your) question)?(?:\s+(?:is|are|would be|should be|must be|therefore)\b|\s*[:：=])"
    r"|答案(?:应该)?(?:是|为)?\s*[:：]?|答\s*[:：]|####|=>|⇒"
    r"|(?:\bso|\bthus|\bhence|\btherefore),? (?:it|this|the [\w' -]{1,40}?) " + _IS + r"\b)\s*[:：]?\s*",
    re.IGNORECASE,
)
COPULA = re.compile(
    r"(?:it|this|that|they|these|those|he|she|there|(?:the|its|his|her|their) [\w' %()-]{1,80}?)"
    rf"(?:'s| {_IS})\b\s*[:：]?\s*(.+)",
    re.IGNORECASE | re.DOTALL,
)
SENTENCE = re.compile(r"(?<=[^\s.])[.!?](?=\s+\S)|[。！？](?=.)|\n+")
REASON = re.compile(
    r"\s{0,3}[,;(—–-]{0,3}\s{0,3}"
    r"\b(?:because|since|as (?:the|it|can|shown|seen|written|printed|stated|listed)"
    r"|which|according to|based on|due to|given)\b.*",
    re.I | re.S,
)
HEDGE = re.compile(
    r"\b(?:or|maybe|perhaps|alternatively|actually|wait|either|unless|could also)\b|也可能|或者", re.IGNORECASE
)
VAGUE = re.compile(
    r"^(?:about|around|approximately|roughly|approx\.?|nearly|almost|probably|likely|circa|~|≈|大约|约)\s*", re.I
)
YES_NO = re.compile(r"(yes|no)\b(?!\s*(?:n?or|and|/|&)\s*(?:yes|no)\b)[,.;:]?\s", re.IGNORECASE)
OUTER = " \t\n\r.,;:!?\"'“”‘’*`()[]。，！？；："
NUMBER = re.compile(
    r"([-+]?)\s*(?:[$€£¥]\s*)?(\d{1,3}(?:[, \u00a0\u202f]\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:e([-+]?\d{1,3}))?",
    re.IGNORECASE | re.ASCII,
)
UNIT = re.compile(r"\s*(?:[°℃]?\s?[A-Za-z²³/]{1,14}\.?(?:\s[a-z]{1,14}){0,2})?$")
PERCENT = re.compile(r"\s*(?:%|percent\b|per cent\b|个?百分)", re.IGNORECASE)
SCALE = re.compile(r"\s*(?:thousand|million|billion|trillion|[kb]n?|mn|(?-i:M))\b", re.IGNORECASE)
"""What multiplies the number before it; a small m is a meter."""
MEASURE = re.compile(
    r"\s*(?:dollars?|usd|euros?|eur|pounds?|yen|yuan|people|persons?|units?|items?|tons?|tonnes?|[kcm]?m|km²|[km]?g|lbs?"
    r"|miles?|feet|ft|lit(?:er|re)s?|[kmgt]wh?|votes?|students?|cases?|points?|cars?|homes?|calories|kcal)\b",
    re.IGNORECASE,
)
FROM, UNTIL = 1500, 2100
"""Whole numbers that may be years, where they are written as four bare digits: see `Amount.year`."""


class Amount(NamedTuple):
    """A number in a text.

    Attributes:
        value: The number.
        percent: Whether it is a percentage.
        year: Whether it may be a year: 1500 to 2100 as four digits, without a thousands mark, decimals, sign, currency,
            percent or unit of measure. `1,998`, `$1998`, `1998.0` and `1998 people` are quantities.
    """

    value: float
    percent: bool
    year: bool


def announced_tail(said: str) -> str:
    """Return what follows the last announcement (`the answer is`, `答案是`), "" without one."""
    announced = list(ANNOUNCED.finditer(said))
    return said[announced[-1].end() :].strip() if announced else ""


def short_answers(reply: str) -> list[str]:
    """List what may be the short answer of a reply, the whole reply first.

    An announced answer excludes all others but the whole; so does a first sentence with an alternative after it.
    """
    said = ends(answer_text(reply))
    found = [said]
    if tail := announced_tail(said):
        found += [tail, *_heads(tail)]
    else:
        sentences = [part for part in SENTENCE.split(said) if part.strip()]
        if len(sentences) == 1 and (match := COPULA.match(said)):
            found += [match[1], *_heads(match[1])]
        found += _heads(said)
    return list(dict.fromkeys(text for one in found if (text := tidy(one))))


def _heads(text: str) -> list[str]:
    """Return the first sentence and what stands before a reason, where no alternative follows."""
    first, *rest = [part for part in SENTENCE.split(text) if part.strip()] or [""]
    heads = [first, REASON.sub("", first)]
    if match := YES_NO.match(first + " "):
        heads.append(match[1])
    return [] if any(HEDGE.search(part) for part in (*rest, *([] if rest else [text[len(first) :]]))) else heads


def tidy(text: str) -> str:
    """Remove outer marks, and words such as `about`."""
    sign = "-" if text.strip().startswith(("-", "−")) and re.match(r"[-−]\s?[\d.$€£¥]", text.strip()) else ""
    point = "." if re.match(r"\.\d", text.strip()) else ""
    found = VAGUE.sub("", text.strip(OUTER + "-−"))
    return f"{sign}{point}{found}".strip()


def amount(text: str) -> Amount | None:
    """Read a text that is one number, with a unit or without."""
    plain = text.replace("−", "-").strip()
    plain = VQA_NUMBERS.get(plain.lower(), plain)
    match = NUMBER.match(plain)
    if match is None:
        return None
    rest = plain[match.end() :]
    percent = PERCENT.match(rest)
    rest = rest[percent.end() :] if percent else rest
    if SCALE.match(rest) or not UNIT.match(rest):
        return None
    digits = re.sub(r"[^0-9.]", "", match[2])
    bare = re.fullmatch(r"\d{4}", match[0]) and FROM <= int(match[0]) <= UNTIL
    year = bool(bare) and percent is None and not MEASURE.match(rest)
    return Amount(float(f"{match[1]}{digits}e{match[3] or 0}"), percent is not None, year)


def normal(text: str) -> str:
    """Return a form in which equal short answers are equal: numbers by value with their sign, texts as VQA does."""
    found = amount(text)
    if found is not None and NUMBER.fullmatch(text.replace("−", "-").strip().rstrip("%").strip()):
        return f"{found[0]:.12g}"
    plain = re.sub(r"\s*,\s*", ", ", text.replace("−", "-").strip())
    if found is not None and plain.lower() in VQA_NUMBERS:
        return f"{found[0]:.12g}"
    return vqa_normalize(plain) or plain.lower()


def same_answer(reply: str, reference: str) -> bool:
    """Tell whether a short answer in the reply is the reference: without case, marks and articles, numbers by value."""
    gold = tidy(reference)
    return bool(gold) and any(normal(one) == normal(gold) for one in short_answers(reply))


def close_number(reply: str, reference: str, tolerance: float = 0.05) -> bool | None:
    """Tell whether a number in the reply is within `tolerance` of the reference; None when the reference is no number.

    Zero is met by zero, a percentage as a share (`0.45` for `45%`) or as written. Where both may be years (`Amount`)
    they must be equal: the question is not seen, and 2009 for 2010 is the graver error to forgive.
    """
    gold = amount(tidy(reference))
    if gold is None:
        return None
    found = [value for one in short_answers(reply) if (value := lone_amount(one)) is not None]
    return any(_close(value, gold, tolerance) for value in found)


def lone_amount(text: str) -> Amount | None:
    """Return the number that a text is, else the only one that it holds, as `amount` does."""
    found = amount(text)
    if found is not None:
        return found
    every = list(NUMBER.finditer(text.replace("−", "-")))
    if len(every) != 1 or HEDGE.search(text) or re.search(r"\bnot\b|n't|\bthan\b|[A-Za-z_]\d|\d[A-Za-z]", text):
        return None
    rest = text.replace("−", "-")[every[0].end() :]
    number = amount(every[0][0])
    if SCALE.match(rest) or number is None:
        return None
    percent = PERCENT.match(rest) is not None
    return Amount(number.value, percent, number.year and not percent and not MEASURE.match(rest))


def _close(value: Amount, gold: Amount, tolerance: float) -> bool:
    if value.year and gold.year:
        return value.value == gold.value
    (a, share, _), (b, of_hundred, _) = value, gold
    pairs = [(a, b)]
    if share != of_hundred:
        pairs.append((a / 100, b) if share else (a, b / 100))
    return any(abs(x - y) <= tolerance * abs(y) for x, y in pairs)


def strict_normal(text: str) -> str:
    """Normalize an answer as VQA does, but keep the sign of a number, and a letter that is also an article."""
    found = normal(tidy(text) or text)
    return found if found not in ARTICLES else text.strip().lower()
