"""Edit distance and longest common subsequence by tables filled in pure Python: the slow reference of scorers.

table_distance("cat", "cart")                                     # 1
table_words(["the", "cat", "sat"], ["the", "sat"])                # ["sat", "the"]
"""

from collections.abc import Sequence


def table_distance(a: str, b: str) -> int:
    """Return the edit distance, one row of the table at a time (Wagner-Fischer)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def table_words(x: Sequence[str], y: Sequence[str]) -> list[str]:
    """Return the longest common subsequence, backwards, from the end and left on ties, as the `rouge` package."""
    table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, a in enumerate(x, 1):
        above, row = table[i - 1], table[i]
        for j, b in enumerate(y, 1):
            row[j] = above[j - 1] + 1 if a == b else max(above[j], row[j - 1])
    words, i, j = [], len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.append(x[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
