"""A visual question answering set as pictures with their questions, split by what the pictures show."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm.core.errors import DataError
from vlm.core.fetch.manifest import sha256_of
from vlm.core.media_root import MediaRoot
from vlm.core.sample.records import iter_jsonl, read_record
from vlm.core.synth.long.materials import Material, Split, license_of, pixels_hash, split_of

Turn = tuple[str, str]
"""(question, answer)."""


@dataclass(frozen=True)
class VqaSet:
    """Pictures by content and the turns asked about each; `unused` counts the records left out, by reason."""

    sources: dict[str, Material]
    turns: dict[str, tuple[Turn, ...]]
    unused: dict[str, int]

    def keys(self, split: Split) -> list[str]:
        """Return the contents of the pictures of a split, in a fixed order."""
        return [key for key, source in sorted(self.sources.items()) if source.split == split]

    def questions(self, split: Split) -> list[tuple[str, Turn]]:
        """Return (content, turn) of every question of a split, in a fixed order."""
        return [(key, turn) for key in self.keys(split) for turn in self.turns[key]]


def read_vqa(
    files: Sequence[Path],
    *,
    root: Path | None,
    val_share: float,
    more: Sequence[Material] = (),
    outside: Sequence[Path] = (),
) -> VqaSet:
    """Read the records with one image each of JSONL files in the published schema; every turn becomes a question.

    Args:
        files: The JSONL files.
        root: Folder that image paths are relative to; by default that of each file.
        val_share: Share of the pictures in the validation split.
        more: Pictures without questions, as distractors only.
        outside: Folders outside of the root that records may name.

    Raises:
        DataError: A record is malformed, or none can be used.
        MediaError: A picture cannot be decoded.
    """
    sources: dict[str, Material] = {}
    turns: dict[str, list[Turn]] = {}
    unused: dict[str, int] = {}
    known: dict[Path, str] = {}
    for file in files:
        for line, record in iter_jsonl(file):
            sample = read_record(record, root=MediaRoot(root or file.parent, tuple(outside)), where=f"{file}:{line}")
            media = sample.media
            if len(media) != 1 or media[0]["type"] != "image":
                unused["not exactly one image"] = unused.get("not exactly one image", 0) + 1
                continue
            path = Path(media[0]["path"])
            if path not in known:
                known[path], size = pixels_hash(path)
                split = split_of(known[path], val_share)
                found = Material(str(path), path, sha256_of(path), license_of(path), split, known[path], size)
                sources.setdefault(known[path], found)
            asked = turns.setdefault(known[path], [])
            talk = [m for m in sample.messages if m["role"] != "system"]
            for user, assistant in zip(talk[::2], talk[1::2], strict=False):
                question, answer = (
                    "".join(part["text"] for part in message["content"] if part["type"] == "text").strip()
                    for message in (user, assistant)
                )
                if (question, answer) not in asked and "<image>" not in question:
                    asked.append((question, answer))
    if not any(turns.values()):
        raise DataError(
            f"no question about one image in {', '.join(map(str, files))}",
            expected="records with `image` and `conversations`",
        )
    for source in more:
        sources.setdefault(source.content, source)
    return VqaSet(sources, {key: tuple(turns.get(key, ())) for key in sources}, unused)
