"""Run `vlm ARGS` with ENV in a child process, both streams into LOG; MAX_FILE limits file sizes, as a full disk does.

conftest.py gives the names in capitals through runpy.
"""
# ruff: noqa: F821, E402

import os
import resource
import signal
import sys

os.environ.update(ENV)
log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)
signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores Ctrl-C
if MAX_FILE:
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, MAX_FILE))

import torch

from vlm.cli.main import main

torch.set_num_threads(1)
sys.argv = ["vlm", *ARGS]
main()
