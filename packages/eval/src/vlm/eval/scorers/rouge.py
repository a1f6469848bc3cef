"""ROUGE-L of the `rouge` package (1.0.x), equal to the last bit, on bit-parallel rows instead of an n x m table."""

from collections.abc import Sequence


def rouge_l(prediction: str, reference: str) -> float:
    """Summary-level ROUGE-L f, 0..1: texts are cut into sentences at `.`, and what counts is the *set* of words in the
    longest common subsequences of all sentence pairs, over the sets of words of either side.

    Source: the published evaluators; the `rouge` package's rule.

    Raises:
        ValueError: a text without any sentence (as the package does).
    """
    found, expected = _sentences(prediction), _sentences(reference)
    if not found or not expected:
        raise ValueError("a text without a sentence")
    common: set[str] = set()
    for sentence in expected:
        for other in found:
            common |= lcs_words(sentence, other)
    n_found, n_expected = (len({word for words in side for word in words}) for side in (found, expected))
    precision, recall = len(common) / n_found, len(common) / n_expected
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _sentences(value: str) -> list[list[str]]:
    # an all-blank sentence counts as one empty word, as in the package
    return [sentence.split() or [""] for sentence in value.split(".") if sentence]


def lcs_words(x: Sequence[str], y: Sequence[str]) -> set[str]:
    """The words of the longest common subsequence of `x` and `y` that the table method finds, walking from the end and
    going left on ties (the choice matters where words repeat).

    Row i is an integer whose *zero* bits are the columns where the table grows by one: O(len(x)) big-integer steps.
    """
    where: dict[str, int] = {}
    for j, word in enumerate(y):
        where[word] = where.get(word, 0) | (1 << j)
    full = (1 << len(y)) - 1
    rows = [full]
    for word in x:
        row = rows[-1]
        hits = row & where.get(word, 0)
        rows.append(((row + hits) | (row - hits)) & full)
    words, i, j = set(), len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.add(x[i - 1])
            i, j = i - 1, j - 1
        elif rows[i] >> (j - 1) & 1:  # the entry to the left is as long: go left
            j -= 1
        else:
            i -= 1
    return words
