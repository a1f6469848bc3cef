"""Pictures and videos that words of a command line name: files, folders, globs and URLs.

media_files(["photos/", "scans/*.png"])          # every picture and video of the folder, then the matches
read_clip("1:10-1:25")                           # (70.0, 85.0)
"""

import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from vlm.core.errors import ConfigError
from vlm.core.fetch.transfer import Patience, fetch_url
from vlm.core.home import home
from vlm.core.paths import exists
from vlm.core.reading import is_folder
from vlm.core.sample.fields import no_clip
from vlm.core.text import printable, shown

VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

URL = re.compile(r"https?://\S+", re.IGNORECASE)

TIME = r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?)"
CLIP = re.compile(rf"{TIME}s?-{TIME}s?")


def is_url(word: str) -> bool:
    """Return whether a word is an http(s) address and nothing else."""
    return URL.fullmatch(word) is not None


def is_glob(word: str) -> bool:
    """Return whether a word is a pattern of file names that ends as pictures or videos do, and no file.

    >>> is_glob("scans/*.png"), is_glob("What is *this*?")
    (True, False)
    """
    suffix = PurePosixPath(word).suffix.lower().rstrip("*")
    named = suffix in VIDEOS | PICTURES or word.endswith(("*", "*.*"))
    return any(sign in word for sign in "*?[") and named and " " not in word.strip("*?") and not exists(word)


def media_files(words: Sequence[str], *, allow_urls: bool = False) -> list[Path]:
    """Return the files that words name, in their order; those of a folder or a glob by name.

    Args:
        words: Files, folders (with all below them), globs, and URLs.
        allow_urls: Fetch what URLs name.

    Raises:
        ConfigError: No such file, a folder or a glob without pictures and videos, or a URL that is not allowed.
        FetchError: A URL that brings nothing.
    """
    if lost := [word for word in words if not (exists(word) or is_url(word) or is_glob(word))]:
        raise ConfigError(
            f"no such file: {printable(', '.join(lost))}",
            expected="pictures, videos, folders or globs (in `vlm chat` then one question in quotes)",
        )
    return [path for word in words for path in _named(word, allow_urls)]


def _named(word: str, allow_urls: bool) -> Iterator[Path]:
    if is_url(word) and not exists(word):
        yield fetched(word, allow=allow_urls)
    elif is_folder(word) or not exists(word):
        matches = [] if exists(word) else glob.glob(word, recursive=True)  # noqa: PTH207  # Path.glob takes no absolute one
        found = below(Path(word)) if exists(word) else map(Path, matches)
        files = sorted(path for path in found if path.suffix.lower() in VIDEOS | PICTURES and path.is_file())
        if not files:
            raise ConfigError(f"no picture or video in {shown(word)}", expected=", ".join(sorted(PICTURES | VIDEOS)))
        yield from files
    else:
        yield Path(word)


def below(folder: Path) -> Iterator[Path]:
    """Yield what lies below a folder, at any depth, but nothing hidden."""
    for path in folder.rglob("*"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def fetched(url: str, *, allow: bool) -> Path:
    """Return a file with the content of a URL; fetched once.

    Raises:
        ConfigError: It is not allowed. FetchError: No network, a refusal.
    """
    if not allow:
        raise ConfigError(
            f"{printable(url)} is a URL", expected="a file: nothing is fetched unasked", fix="add --allow-urls"
        )
    suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
    name = hashlib.sha256(url.encode()).hexdigest()[:32] + (suffix if suffix in VIDEOS | PICTURES else "")
    return fetch_url(url, home() / ".cache" / "media" / name, patience=Patience(tries=2, timeout=30))


def read_clip(value: str) -> tuple[float, float]:
    """Read a range of a video: `10-25` in seconds, `1:10-1:25` in minutes, `1:00:05-1:00:10` in hours.

    Raises:
        ConfigError: It is no range, or ends before it starts.

    >>> read_clip("10-25"), read_clip("1:10-1:25.5")
    ((10.0, 25.0), (70.0, 85.5))
    """
    match = CLIP.fullmatch(value.replace("\N{EN DASH}", "-").replace(" ", ""))
    if match is None:
        raise ConfigError(f"a clip {printable(value)}", expected="START-END, in seconds or as mm:ss: 10-25, 1:10-1:25")
    times = [_seconds(*match.groups()[:3]), _seconds(*match.groups()[3:])]
    if why := no_clip(times):
        raise ConfigError(f"a clip {printable(value)} {why}", expected="a start before the end")
    return times[0], times[1]


def _seconds(hours: str | None, minutes: str | None, seconds: str) -> float:
    return 3600 * int(hours or 0) + 60 * int(minutes or 0) + float(seconds)
