"""BLEU-4 of a corpus as caption metrics compute it: closest reference length, tiny constants instead of smoothing.

bleu4(bleu_counts(["a cat sits"], [["a cat sits here"]]).sum(axis=0))
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vlm.eval.measures.ptb import words
from vlm.eval.measures.stats import Array

N = 4
SMALL, TINY = 1e-9, 1e-15
"""Added to counts and to matches, so that a corpus without a match is nearly, not exactly, zero."""


def bleu_counts(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """Count what BLEU-4 needs of each item, float64 [items, 10].

    Columns: matches of 1- to 4-grams, 1- to 4-grams of the prediction, its length, the length of the closest reference.

    Source: COCO caption metrics, with Penn Treebank tokens.

    Raises:
        AssertionError: An item has no reference (as published).
    """
    assert all(references), "an item without a reference"
    found = words(list(predictions))
    flat = iter(words([text for group in references for text in group]))
    rows = []
    for prediction, group in zip(found, references, strict=True):
        expected = [next(flat) for _ in group]
        most: Counter[tuple[str, ...]] = Counter()
        for reference in expected:
            most |= _ngrams(reference)
        grams = _ngrams(prediction)
        matches = [sum(min(count, most[gram]) for gram, count in grams.items() if len(gram) == n) for n in range(1, 5)]
        size = len(prediction)
        _, length = min((abs(len(reference) - size), len(reference)) for reference in expected)
        rows.append([*matches, *(max(0, size - n + 1) for n in range(1, N + 1)), size, length])
    return np.array(rows, dtype=np.float64).reshape(-1, 2 * N + 2)


def _ngrams(tokens: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, N + 1) for i in range(len(tokens) - n + 1))


def bleu4(totals: Sequence[float] | Array) -> float:
    """Return BLEU-4, 0 to 1, of the summed counts of a corpus: 0 for an empty one, just below 1 for a perfect one."""
    matches, guesses, size, length = totals[:N], totals[N : 2 * N], totals[2 * N], totals[2 * N + 1]
    product = 1.0
    for match, guess in zip(matches, guesses, strict=True):
        product *= (match + TINY) / (guess + SMALL)
    ratio = (size + TINY) / (length + SMALL)
    return float(product ** (1 / N) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0))
