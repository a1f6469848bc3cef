"""ROUGE-L as the `rouge` package (1.0.x) computes it, equal to the last bit, by bit-parallel rows instead of a table.

rouge_l("the cat sat", "the cat sat down")                     # 0.857
"""

from collections.abc import Sequence


def rouge_l(prediction: str, reference: str) -> float:
    """Return the summary-level ROUGE-L F-score of two texts, 0 to 1.

    Texts are cut into sentences at `.`. The *set* of words in the longest common subsequences of all pairs of sentences
    is divided by the set of words of either side. Source: the published evaluators; the `rouge` package.

    Raises:
        ValueError: A text has no sentence (as in the package).
    """
    found, expected = _sentences(prediction), _sentences(reference)
    if not found or not expected:
        raise ValueError("a text without a sentence")
    common: set[str] = set()
    for sentence in expected:
        for other in found:
            common |= lcs_words(sentence, other)
    precision = len(common) / len(set().union(*found))
    recall = len(common) / len(set().union(*expected))
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _sentences(value: str) -> list[list[str]]:
    # an all-blank sentence counts as one empty word, as in the package
    return [sentence.split() or [""] for sentence in value.split(".") if sentence]


def lcs_words(x: Sequence[str], y: Sequence[str]) -> set[str]:
    """Return the words of the longest common subsequence of `x` and `y` that the table method finds.

    It walks from the end and goes left on ties, which matters where words repeat. Row i is an integer whose *zero* bits
    are the columns where the table grows by one: O(len(x)) steps on big integers. The words with which both sides begin
    or end are in every longest common subsequence and need no table.
    """
    tail = head = 0
    for a, b in zip(reversed(x), reversed(y), strict=False):
        if a != b:
            break
        tail += 1
    n = min(len(x), len(y)) - tail
    for a, b in zip(x[:n], y, strict=False):
        if a != b:
            break
        head += 1
    words = {*x[:head], *x[len(x) - tail :]}
    if head == n:
        return words
    x, y = x[head : len(x) - tail], y[head : len(y) - tail]
    where: dict[str, int] = {}
    bit = 1
    for word in y:
        where[word] = where.get(word, 0) | bit
        bit <<= 1
    row = full = bit - 1
    rows = []
    for word in x:
        places = where.get(word, 0)
        hits = row & places
        if hits:
            row = ((row + hits) | (row - hits)) & full
        rows.append((word, places, full ^ row))
    for word, places, grows in reversed(rows):
        # the first column from the right that holds the word or where the row above is shorter; all others go left
        column = (grows | places) & full
        if not column:
            break
        width = column.bit_length() - 1
        full = (2 << width) - 1
        if places >> width & 1:
            words.add(word)
            full >>= 1
    return words
