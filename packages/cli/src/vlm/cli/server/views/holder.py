"""Who works in a folder, as the note beside its lock says; nothing is locked, so that a read-only disk will do."""

import os
import socket
from pathlib import Path
from typing import NamedTuple

from vlm.cli.server.views.tail import read_small


class Holder(NamedTuple):
    """`said`: what the note says, "" without one. `alive`: it runs, as far as can be known from here."""

    said: str
    alive: bool


def holder_of(folder: Path) -> Holder:
    """Return who holds a folder. A process of another machine counts as alive: its note is removed when it ends."""
    note = read_small(folder / ".lock.json", 1 << 12)
    if not note:
        return Holder("", alive=False)
    host, pid = str(note.get("host", "")), note.get("pid")
    said = f"{note.get('purpose', 'a process')} (process {pid} on {host})"[:300]
    if host != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return Holder(said, alive=True)
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except (ProcessLookupError, OverflowError):
        return Holder(said, alive=False)
    except PermissionError:
        pass
    return Holder(said, alive=True)
