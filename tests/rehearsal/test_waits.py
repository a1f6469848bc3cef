"""How often the host waits for the device: for each row of training, each new token, each step of the engine.

A wait costs a GPU the time until the next operation is queued. The numbers are held exactly on the pretended device.
`SHOW_WAITS=1 pytest -s tests/rehearsal/test_waits.py` says where each one comes from.
"""

import pytest
from support.rehearsed_rows import moved, one_row, packed_row, padded_rows


def test_print(pair, device, waits):
    here, there = pair()
    there.train()
    for rows in (packed_row, padded_rows):
        for backend in ("varlen", "sdpa"):
            there.set_attention(backend)
            given = moved(rows(here), device)
            print(rows.__name__, backend)
            with waits() as count:
                there(**given, logits=False).loss.backward()
            print(count)
    there.eval()
    for name, one in (("one", one_row(here)), ("padded", padded_rows(here))):
        given = moved({k: v for k, v in one.items() if "labels" not in k}, device)
        for n in (3, 6):
            with waits() as count:
                there.generate(**given, max_new_tokens=n)
            print(name, n, count)
