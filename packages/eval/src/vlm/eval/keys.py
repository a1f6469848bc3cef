"""Content keys: digests that identify an answer by what produced it.

content_key(weights="w", prompt="What is it?", media=[file_hash("cat.png")])      # 64 hex digits
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from vlm.core.fetch.manifest import sha256_of


def content_key(**parts: Any) -> str:
    """Return the sha256 (hex) of the JSON of `parts`; equal parts give equal keys on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@cache
def file_hash(path: str) -> str:
    """Return the sha256 (hex) of a file, or one of all files in a folder of frames; "missing" when there is neither.

    Cached for the process: the files of a benchmark do not change while it is evaluated.
    """
    root = Path(path)
    if root.is_dir():
        return content_key(frames=[[p.name, file_hash(str(p))] for p in sorted(root.iterdir()) if p.is_file()])
    return sha256_of(root) if root.is_file() else "missing"
