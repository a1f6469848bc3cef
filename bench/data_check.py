"""`vlm data check` of 20,000 conversations about 2,000 pictures, against encoding them for training.

Records have one picture and two rounds (questions of 12, answers of 24 words, half of the questions from a list of 40,
as in instruction data); dynamic tiles and the InternLM2 template, with the small SentencePiece model of the tests.
The peer is the training encoder, which decodes and cuts the pictures; it runs on 400 of the records and must count the
same.
Companion: headers read, pictures decoded, and whether torch is imported.
"""

import os
import random
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from harness import report
from PIL import Image, ImageFile

from vlm.core.check.check import CheckedFile, check
from vlm.core.check.report import CheckReport, collect
from vlm.core.sample.encode import ImageTokenIds, SampleEncoder
from vlm.core.sample.measure import Rules
from vlm.core.sample.records import iter_jsonl, read_record
from vlm.core.sample.tiling import ImageRule
from vlm.core.sample.tokenizer import load_tokenizer

TOKENIZER = Path(__file__).parents[1] / "tests" / "golden" / "data" / "tokenizers" / "internlm2"
RECORDS, PICTURES, PEER = 20_000, 2_000, 400
RULE = ImageRule(kind="tiles", size=448)


def make(root: Path) -> CheckedFile:
    """The pictures and the records."""
    import json

    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(5000)]
    weights = [1 / (i + 1) for i in range(len(words))]

    def text(n: int) -> str:
        return " ".join(rng.choices(words, weights, k=n))

    for i in range(PICTURES):
        Image.new("RGB", (rng.randint(200, 900), rng.randint(200, 900)), (i % 256, 0, 0)).save(root / f"{i}.jpg")
    known = [text(12) for _ in range(40)]
    with (root / "train.jsonl").open("w") as f:
        for i in range(RECORDS):
            turns = []
            for k in range(2):
                question = rng.choice(known) if rng.random() < 0.5 else text(12)
                turns += [("human", "<image>\n" * (k == 0) + question), ("gpt", text(24))]
            conversation = [{"from": role, "value": value} for role, value in turns]
            record = {"id": i, "image": f"{rng.randrange(PICTURES)}.jpg", "conversations": conversation}
            f.write(json.dumps(record) + "\n")
    return CheckedFile("bench", root / "train.jsonl", root)


def cpu() -> float:
    """Seconds of all cores used by this process and its finished children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def timed(rules: Rules, source: CheckedFile, workers: int) -> tuple[float, float, CheckReport]:
    began, used = time.perf_counter(), cpu()
    found = collect(rules, [source], check(rules, [source], workers))
    return time.perf_counter() - began, cpu() - used, found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VLM_HOME"] = folder
        root = Path(folder)
        source = make(root)
        marks = ImageTokenIds.internvl(load_tokenizer(TOKENIZER))
        rules = Rules(TOKENIZER, "internlm2-chat", RULE, 256, marks, max_length=4096, strides=(None, 64.0))
        rows = []
        for workers in (1, 2):
            runs = [timed(rules, source, workers) for _ in range(3)]
            wall, used, found = min(runs, key=lambda run: run[0])
            rows.append(
                {
                    "workers": workers,
                    "samples": RECORDS,
                    "tokens": found.as_dict(samples=False)["measures"]["tokens"]["mean"],
                    "samples_per_s": RECORDS / wall,
                    "samples_per_cpu_s": RECORDS / used,
                    "headers_read": found.opened,
                    "pictures_decoded": 0,
                    "torch_imported": "torch" in sys.modules,
                    "load_average": os.getloadavg()[0],
                }
            )
        decoded = 0
        load = ImageFile.ImageFile.load

        def counting(self: ImageFile.ImageFile) -> object:
            nonlocal decoded
            decoded += 1
            return load(self)

        ImageFile.ImageFile.load = counting  # to count, in this process alone
        alone = timed(rules, source, 1)[2]
        assert decoded == 0, "the check decoded a picture"
        encoder = SampleEncoder(load_tokenizer(TOKENIZER), "internlm2-chat", RULE, 256, marks)
        samples = [read_record(record, root=root) for _, record in iter_jsonl(source.file)][:PEER]
        began = time.perf_counter()
        encoded = list(map(partial(encoder.encode, strides=64.0), samples))
        seconds = time.perf_counter() - began
        tokens = alone.rows["bench"][:PEER, 4]
        assert np.array_equal(tokens, [len(e) for e in encoded])
        rows.append(
            {
                "peer": "the training encoder",
                "samples": PEER,
                "samples_per_s": PEER / seconds,
                "pictures_decoded": decoded,
                "ratio": rows[0]["samples_per_s"] / (PEER / seconds),
            }
        )
        report("data_check", rows)


if __name__ == "__main__":
    main()
