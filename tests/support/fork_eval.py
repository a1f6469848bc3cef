"""Real `vlm` processes at the price of a fork: everything is imported once, each command runs in its own child.

Reads lines of JSON and answers each with one: `{"arguments": [...], "log": path}` with the pid of a new child that runs
`vlm ARGUMENTS`, `{"wait": pid}` with its wait status. `file_size` (bytes that a file may have), `umask` and
`plain_user` (no right to read or write what its permissions forbid) are set in the child first.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import traceback
from typing import Any

from vlm.cli.main import main


def child(arguments: list[str], log: str, **limits: Any) -> None:
    """Run the command as `vlm` does, and end this process."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if limits:  # which the log does not keep
            cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output)
            assert cat.stdin is not None
            output = cat.stdin.fileno()
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        if "umask" in limits:
            os.umask(limits["umask"])
        if size := limits.get("file_size"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        if limits.get("plain_user"):  # root without its rights over other files
            header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            assert ctypes.CDLL(None).capset(header, none) == 0
        sys.argv = ["vlm", *arguments]
        main()
        code = 0
    except Exception:  # noqa: BLE001  # shown as Python would show it
        traceback.print_exc()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitpid(request["wait"], 0)[1]
        else:
            answer = os.fork()
            if answer == 0:
                child(**request)
        print(json.dumps(answer), flush=True)
