"""As train_worker.py, but the process kills itself at the call CRASH of those that change files below FOLDER.

An even CRASH dies before its call, an odd one after it; without CRASH the number of calls is written to COUNT.
"""
# ruff: noqa: F821

import os
import runpy
import shutil
from pathlib import Path

os.environ.update(ENV)
calls, last = 0, int(ENV.get("CRASH", -1))


def watched(module, name):
    real = getattr(module, name)

    def call(*args, **kw):
        global calls
        if not any(str(a).startswith(ENV["FOLDER"]) for a in args):
            return real(*args, **kw)
        number = calls = calls + 1
        if number == last // 2 and last % 2 == 0:
            os.kill(os.getpid(), 9)
        try:
            return real(*args, **kw)
        finally:  # also where it fails, as the removal of what is not there
            if number == last // 2:
                os.kill(os.getpid(), 9)

    setattr(module, name, call)


for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "open"):
    watched(os, name)
for name in ("rmtree", "copyfile"):
    watched(shutil, name)
here = {"ARGS": ARGS, "ENV": ENV, "LOG": LOG, "MAX_FILE": MAX_FILE}
try:
    runpy.run_path(str(Path(__file__).with_name("train_worker.py")), here, "worker")
finally:  # the command ends by raising SystemExit
    if "COUNT" in ENV:
        Path(ENV["COUNT"]).write_text(str(calls))
