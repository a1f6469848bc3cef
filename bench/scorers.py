"""Edit distance (rapidfuzz) and ROUGE-L (bit-parallel rows) against tables filled in pure Python, with equal values.

Peers are ours, from the published descriptions: Wagner-Fischer with one row; the summary-level ROUGE-L of the `rouge`
package, whose table is a dict of cells walked back by recursion. `lists` is the same job by lists of rows and a loop
(`text_tables`), as fast as we could write the table: no target, printed for scale. A ratio on a CPU shows the
algorithm. Companion: equal values on 10,000 fuzzed pairs (integers for distances, floats to the last bit for ROUGE-L),
the peer's cells.
"""

import random
import string
from collections.abc import Callable
from importlib.metadata import version

from harness import paired, report
from rapidfuzz.distance import Levenshtein
from text_tables import table_distance, table_words

from vlm.eval.measures.rouge import rouge_l

PAIRS = 10_000
VOCABULARY = ["".join(random.Random(i).choices(string.ascii_lowercase, k=1 + i % 9)) for i in range(300)]


def dict_words(x: list[str], y: list[str]) -> list[str]:
    """Longest common subsequence by a dict of cells, walked back by recursion, left on ties: the package's way."""
    table: dict[tuple[int, int], int] = {}
    for i in range(len(x) + 1):
        for j in range(len(y) + 1):
            if i == 0 or j == 0:
                table[i, j] = 0
            elif x[i - 1] == y[j - 1]:
                table[i, j] = table[i - 1, j - 1] + 1
            else:
                table[i, j] = max(table[i - 1, j], table[i, j - 1])

    def walk(i: int, j: int) -> list[str]:
        if i == 0 or j == 0:
            return []
        if x[i - 1] == y[j - 1]:
            return [*walk(i - 1, j - 1), x[i - 1]]
        return walk(i - 1, j) if table[i - 1, j] > table[i, j - 1] else walk(i, j - 1)

    return walk(len(x), len(y))


Common = Callable[[list[str], list[str]], list[str]]


def table_rouge_l(prediction: str, reference: str, common_words: Common) -> float:
    """ROUGE-L f of two texts of one or more sentences."""
    found, expected = ([s.split() or [""] for s in text.split(".") if s] for text in (prediction, reference))
    common = {word for sentence in expected for other in found for word in common_words(sentence, other)}
    sizes = [len({word for sentence in side for word in sentence}) for side in (found, expected)]
    precision, recall = len(common) / sizes[0], len(common) / sizes[1]
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def near(rng: random.Random, text: list[str], alphabet: list[str]) -> list[str]:
    """A copy with about a fifth of the places changed, dropped or doubled, as replies differ from references."""
    copy = []
    for symbol in text:
        change = rng.random()
        if change < 0.1:
            copy.append(rng.choice(alphabet))
        elif change < 0.15:
            copy += [symbol, symbol]
        elif change > 0.95:
            continue
        else:
            copy.append(symbol)
    return copy or [alphabet[0]]


def pairs(rng: random.Random, alphabet: list[str], low: int, high: int, n: int) -> list[tuple[list[str], list[str]]]:
    """`n` texts of `low` to `high` symbols, each with a near copy (or, one in ten, another text)."""
    made = []
    for _ in range(n):
        first, other = (rng.choices(alphabet, k=rng.randint(low, high)) for _ in range(2))
        made.append((first, other if rng.random() < 0.1 else near(rng, first, alphabet)))
    return made


def main() -> None:
    rng, rows = random.Random(0), []
    letters = list(string.ascii_lowercase[:12] + " é")
    fuzzed = [("".join(a), "".join(b)) for a, b in pairs(rng, letters, 0, 40, PAIRS)]
    equal = sum(Levenshtein.distance(a, b) == table_distance(a, b) for a, b in fuzzed)
    assert equal == PAIRS, f"{PAIRS - equal} distances differ"
    for length, n, target in ((12, 2000, 100), (200, 60, 1000)):
        texts = [("".join(a), "".join(b)) for a, b in pairs(rng, letters, length, length, n)]
        row = paired(
            lambda texts=texts: [Levenshtein.distance(a, b) for a, b in texts],
            lambda texts=texts: [table_distance(a, b) for a, b in texts],
        )
        cells = sum(len(a) * len(b) for a, b in texts)
        rows.append({"job": "edit distance", "characters": length, "pairs": n, "equal_of_10000": equal} | row)
        rows[-1] |= {"to_reach": target, "peer_cells": cells, "rapidfuzz": version("rapidfuzz")}

    sentences = [(" ".join(a), " ".join(b)) for a, b in pairs(rng, VOCABULARY, 1, 60, PAIRS)]
    cut = [(a.replace(" ", ". ", 1) if len(a) % 3 == 0 else a, b) for a, b in sentences]
    equal = sum(rouge_l(a, b) == table_rouge_l(a, b, table_words) for a, b in cut)
    assert equal == PAIRS, f"{PAIRS - equal} ROUGE-L values differ"
    for words, n in ((12, 600), (30, 200), (60, 60)):
        texts = [(" ".join(a), " ".join(b)) for a, b in pairs(rng, VOCABULARY, words, words, n)]
        cells = sum(len(a.split()) * len(b.split()) for a, b in texts)
        for peer, method, target in (("package", dict_words, 7), ("lists", table_words, None)):
            row = paired(
                lambda texts=texts: [rouge_l(a, b) for a, b in texts],
                lambda texts=texts, method=method: [table_rouge_l(a, b, method) for a, b in texts],
            )
            rows.append({"job": "ROUGE-L", "peer": peer, "words": words, "pairs": n, "equal_of_10000": equal} | row)
            rows[-1] |= {"to_reach": target, "peer_cells": cells}
    report("scorers", rows)


if __name__ == "__main__":
    main()
