"""As train_worker.py, but line STALLED of the data never answers in the process RANK of STALLED_RANK."""
# ruff: noqa: F821

import os
import runpy
from pathlib import Path

os.environ.update(ENV)

from vlm.train.run import stream

read = stream.Lines.__getitem__


def stalled(self, i):
    if i == int(ENV["STALLED"]) and os.environ.get("RANK", "0") == ENV.get("STALLED_RANK", "0"):
        Path(ENV["PIPE"]).read_text()  # nobody writes to it
    return read(self, i)


stream.Lines.__getitem__ = stalled
here = {"ARGS": ARGS, "ENV": ENV, "LOG": LOG, "MAX_FILE": MAX_FILE}
runpy.run_path(str(Path(__file__).with_name("train_worker.py")), here, "worker")
