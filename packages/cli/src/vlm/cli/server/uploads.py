"""Files on disk while a server runs: what clients send ahead."""

import tempfile
import threading
from collections import OrderedDict
from pathlib import Path


class Uploads:
    """Files that were sent ahead, by id: at most `limit` bytes, the least recently used is forgotten first.

    `folder` must be set before the first file comes; requests have folders of their own below it.
    """

    def __init__(self, limit: int):
        self.limit, self.folder = limit, Path(tempfile.gettempdir())
        self._kept: OrderedDict[str, Path] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Return the bytes of all files."""
        return sum(path.stat().st_size for path in self._kept.values())

    def keep(self, path: Path) -> str:
        """Take a file of the folder; return its id."""
        with self._lock:
            self._kept[path.stem] = path
            self._kept.move_to_end(path.stem)
            while self.nbytes > self.limit and len(self._kept) > 1:
                self._kept.popitem(last=False)[1].unlink(missing_ok=True)
        return path.stem

    def find(self, name: str, folder: Path) -> Path | None:
        """Return the file with that id, linked into a request's folder so that it stays until the request is read."""
        with self._lock:
            path = self._kept.get(name)
            if path is None:
                return None
            self._kept.move_to_end(name)
            mine = folder / path.name
            if not mine.exists():
                mine.hardlink_to(path)
            return mine
