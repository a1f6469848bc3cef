"""Real `vlm` processes at the price of a fork: everything is imported once, each command runs in its own child.

Reads lines of JSON and answers each with one: `{"arguments": [...], "log": path}` with the pid of a new child that runs
`vlm ARGUMENTS`, `{"wait": pid}` with its wait status.
"""

import json
import os
import sys

from vlm.cli.main import main


def child(arguments: list[str], log: str) -> None:
    """Run the command as `vlm` does, and end this process."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["vlm", *arguments]
        main()
        code = 0
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
                child(request["arguments"], request["log"])
        print(json.dumps(answer), flush=True)
