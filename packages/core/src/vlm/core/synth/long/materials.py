"""The sources of long documents: images and prose of named folders, or of installed packages.

Every source has a SHA-256, a license where one is known, and a split that follows from its content alone: the pixels of
an image, the bytes of a text. So no image is in both splits, whatever its name or file format, and adding a source
moves no other.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from vlm.core.errors import DataError, MediaError
from vlm.core.fetch.catalogue import load_catalogue
from vlm.core.fetch.manifest import sha256_of
from vlm.core.sample.media import IMAGE_SUFFIXES, load_image

Split = Literal["train", "val"]
SUFFIXES = IMAGE_SUFFIXES | {".gif", ".tif", ".tiff"}
TEXTS = {".txt", ".md", ".rst", ".py"}
SMALLEST = 96
"""Least length of the shorter side of an image in pixels: a piece of a smaller one would show nothing."""

PACKAGES: dict[str, tuple[str, str]] = {
    "scikit-image": (r"skimage/data/(?!motorcycle_right).*", r"skimage/(?!.*tests/).*\.py"),
    "scikit-learn": (r"sklearn/datasets/images/.*", r"sklearn/(datasets/descr/.*\.rst|(?!.*tests/).*\.py)"),
    "matplotlib": (r"matplotlib/mpl-data/sample_data/.*", r"(matplotlib|mpl_toolkits)/(?!.*tests/).*\.py"),
    "numpy": (r"-", r"numpy/(?!.*tests/).*\.py"),
    "scipy": (r"-", r"scipy/(?!.*tests/).*\.py"),
}
"""Package -> patterns of its images and of its texts, used when no folder is named; what is not installed is left out.
Texts are the prose in their documentation strings. Of the stereo pair only one picture is used, so that its scene
is in one split only."""

RESERVED = re.compile(r"(?:little|the) penguin|<image>|<video>|<\||</?(?:img|s)>", re.IGNORECASE)
"""Forbidden in source texts: the subject of the needles, and marks that would become images or special tokens."""

LISTED = re.compile(r"---|\.\. | : |::|>>>")
"""Underlines, directives, parameter lists and code that were joined into one line."""


@dataclass(frozen=True)
class Material:
    """A source file.

    `name` is for people. `content` is a hash of what it shows or says, which decides the split. `size` in pixels is for
    images only, `paragraphs` for texts only.
    """

    name: str
    path: Path
    sha256: str
    license: str | None
    split: Split
    content: str
    size: tuple[int, int] = (0, 0)
    paragraphs: tuple[tuple[str, ...], ...] = ()

    @property
    def key(self) -> str:
        """Short name for files made from it."""
        return self.content[:16]


@dataclass(frozen=True)
class Materials:
    """The sources found, in the order of content hashes, and the files that were skipped with the reason."""

    images: tuple[Material, ...]
    texts: tuple[Material, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def of(self, split: Split) -> "Materials":
        """Return the sources of one split."""
        images, texts = (tuple(s for s in kind if s.split == split) for kind in (self.images, self.texts))
        return Materials(images, texts)

    def described(self) -> dict[str, object]:
        """Return the sources for the manifest."""
        listed = [
            {
                "kind": kind,
                "file": s.name,
                "sha256": s.sha256,
                "content": s.content,
                "licence": s.license,
                "split": s.split,
            }
            for kind, sources in (("image", self.images), ("text", self.texts))
            for s in sources
        ]
        return {"sources": listed, "skipped": [{"file": name, "reason": reason} for name, reason in self.skipped]}


def find_sources(images: Sequence[Path], texts: Sequence[Path], *, val_share: float) -> Materials:
    """Find images and prose below the named folders (or files); without any, those of installed packages.

    Args:
        images: Folders or files of pictures.
        texts: Folders or files of prose.
        val_share: Share of the sources in the validation split.

    Raises:
        DataError: A folder is missing, or has nothing usable.
    """
    pictures = find_images(images, val_share=val_share)
    skipped: list[tuple[str, str]] = []
    prose = _usable(_text, TEXTS, _files(texts, 1), val_share, skipped)
    if not prose:
        raise _nothing("text", texts, skipped)
    return Materials(pictures.images, tuple(_without_repeats(prose)), (*pictures.skipped, *sorted(skipped)))


def _without_repeats(texts: Iterable[Material]) -> Iterator[Material]:
    """Yield texts with each paragraph only once: documentation repeats itself, and so would the haystack."""
    seen: set[tuple[str, ...]] = set()
    for text in texts:
        new = tuple(p for p in dict.fromkeys(text.paragraphs) if p not in seen)
        seen |= set(new)
        if new:
            yield replace(text, paragraphs=new)


def find_images(folders: Sequence[Path], *, val_share: float, smallest: int = SMALLEST) -> Materials:
    """Find the images as `find_sources` does; `smallest` is the least length of the shorter side in pixels."""
    skipped: list[tuple[str, str]] = []

    def read(path: Path, name: str, license: str | None, share: float) -> tuple[str, Material] | str:
        found = _image(path, name, license, share)
        small = not isinstance(found, str) and min(found[1].size) < smallest
        return f"a side of less than {smallest} pixels" if small else found

    pictures = _usable(read, SUFFIXES, _files(folders, 0), val_share, skipped)
    if not pictures:
        raise _nothing("images", folders, skipped)
    return Materials(tuple(pictures), (), tuple(sorted(skipped)))


def _nothing(kind: str, folders: Sequence[Path], skipped: list[tuple[str, str]]) -> DataError:
    where = ", ".join(map(str, folders)) or "the installed packages"
    fix = "" if folders else "pip install scikit-image scikit-learn, or "
    why = f" ({len(skipped)} files skipped, the first: {skipped[0][1]})" if skipped else ""
    return DataError(f"no {kind} to build from in {where}{why}", fix=f"{fix}name another folder with --{kind}")


def split_of(content: str, val_share: float) -> Split:
    """Return the split of a content hash (hexadecimal)."""
    return "val" if int(content[:12], 16) < val_share * 16**12 else "train"


def pixels_hash(path: Path) -> tuple[str, tuple[int, int]]:
    """Return the SHA-256 of the decoded RGB pixels, and (width, height).

    All lossless files of a picture have the same hash.
    """
    picture = load_image(path)
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest(), picture.size


def license_of(path: Path) -> str | None:
    """Return the license of a file: of its catalogue entry, else the first line of a LICENSE file near it."""
    return _folder_license(path.parent)


@lru_cache(maxsize=4096)
def _folder_license(below: Path) -> str | None:
    for entry in load_catalogue().values():
        if below.is_relative_to(entry.path):
            return entry.license
    for folder in [below, *list(below.parents)[:2]]:
        for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING"):
            if (folder / name).is_file():
                lines = (folder / name).read_text(encoding="utf-8", errors="replace").split("\n")
                return next((line.strip() for line in lines if line.strip()), None)
    return None


def paragraphs_of(text: str) -> tuple[tuple[str, ...], ...]:
    """Return paragraphs of prose as sentences; headings, lists, code and tables are left out (ours)."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        words = re.sub(r":[a-z:]+:(?=`)|`| ?<[\w.-]+>(?=`)", "", " ".join(block.split()))
        if len(words) < 60 or words[-1] not in ".!?。！？" or words[0].islower() or not words[0].isalnum():
            continue
        letters = sum(c.isalpha() or c == " " for c in words)
        if letters >= 0.9 * len(words) and not RESERVED.search(words) and not LISTED.search(words):
            found.append(tuple(re.split(r"(?<=[.!?])\s+(?=[A-Z])|(?<=[。！？])", words)))
    return tuple(tuple(s for s in sentences if s) for sentences in found)


Found = tuple[Path, str, str | None]
"""File, its name for people, license (None: look for it)."""


Reader = Callable[[Path, str, str | None, float], tuple[str, Material] | str]
"""(content hash, source) of a file, or the reason why it is none."""


def _files(folders: Sequence[Path], kind: int) -> Iterator[Found]:
    if not folders:
        for name, patterns in PACKAGES.items():
            try:
                package = distribution(name)
            except PackageNotFoundError:
                continue
            license, version = _package_license(package), package.version
            for file in sorted(map(str, package.files or [])):
                if re.fullmatch(patterns[kind], file):
                    yield Path(str(package.locate_file(file))), f"{name} {version}: {file}", license
    for folder in folders:
        if not folder.exists():
            raise DataError(f"no such file or folder: {folder}", fix="name an existing one")
        for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
            yield path, str(path), None


def _usable(
    read: Reader, suffixes: set[str], files: Iterable[Found], val_share: float, skipped: list[tuple[str, str]]
) -> list[Material]:
    seen: dict[str, Material] = {}
    for path, name, license in files:
        if path.suffix.lower() not in suffixes or not path.is_file():
            continue
        outcome = read(path, name, license, val_share)
        if isinstance(outcome, str):
            skipped.append((name, outcome))
        elif outcome[0] in seen:
            skipped.append((name, f"same content as {seen[outcome[0]].name}"))
        else:
            seen[outcome[0]] = outcome[1]
    return [seen[content] for content in sorted(seen)]


def _image(path: Path, name: str, license: str | None, val_share: float) -> tuple[str, Material] | str:
    try:
        content, size = pixels_hash(path)
    except MediaError as error:
        return error.found.replace(str(path), path.name)
    license = license or license_of(path)
    return content, Material(name, path, sha256_of(path), license, split_of(content, val_share), content, size)


def _text(path: Path, name: str, license: str | None, val_share: float) -> tuple[str, Material] | str:
    content = path.read_bytes()
    text = content.decode("utf-8", errors="replace")
    if path.suffix == ".py":
        text = "\n\n".join(re.findall(r'"""(.*?)"""', text, re.DOTALL))
    paragraphs = paragraphs_of(text)
    if not paragraphs:
        return "no prose"
    digest = hashlib.sha256(content).hexdigest()
    license = license or license_of(path)
    return digest, Material(name, path, digest, license, split_of(digest, val_share), digest, paragraphs=paragraphs)


def _package_license(package: Distribution) -> str | None:
    about = package.metadata
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    expression, text = ((about.get_all(name) or [""])[0] for name in ("License-Expression", "License"))
    stated = (expression, *classifiers, text.split("\n")[0])
    return next((license for license in stated if license), None)
