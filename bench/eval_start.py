"""The start of `vlm eval` (one question of the tiny model), against a process that loads it in transformers.

The peer imports transformers' Auto classes and opens the same weights in their layout. Both are whole processes.
Companions: modules imported by both; CPU seconds of a wrong model name, and whether that imported torch.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import paired, report

TOKENIZER = Path(__file__).parents[1] / "tests" / "golden" / "data" / "tokenizers" / "internlm2"
MAIN = (
    "import sys; from vlm.cli.main import main\ntry: main()\nfinally: print(len(sys.modules), 'torch' in sys.modules)"
)


def vlm(*line: str) -> list[str]:
    return [sys.executable, "-c", MAIN, *line]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"VLM_HOME": folder, "OMP_NUM_THREADS": "1"}

        def run(command: list[str]) -> str:
            return subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout

        run(vlm("weights", "make", "tiny-internvl2", "-o", f"{folder}/tiny", "--tokenizer", str(TOKENIZER)))
        run(vlm("weights", "convert", f"{folder}/tiny", "--to", "hf", "-o", f"{folder}/hf"))
        ask = vlm("eval", "pope", "--mini", "--model", f"{folder}/tiny", "--limit", "1", "--max-new-tokens", "1")
        ask += ["--replace", "--retry-failed"]
        peer = [
            sys.executable,
            "-c",
            "import sys\nfrom transformers import AutoModelForImageTextToText\n"
            f"AutoModelForImageTextToText.from_pretrained({folder + '/hf'!r})\nprint(len(sys.modules))",
        ]
        wrong = vlm("eval", "pope", "--mini", "--model", "no-such-model")
        row = paired(lambda: run(ask), lambda: run(peer), runs=3)
        refused = paired(lambda: run(wrong), lambda: run([sys.executable, "-c", "import torch"]), runs=3)
        modules = {name: int(run(c).split()[-at]) for name, c, at in (("ours", ask, 2), ("peer", peer, 1))}
        report(
            "eval_start",
            [
                {"what": "one question", "modules_ours": modules["ours"], "modules_peer": modules["peer"], **row},
                {"what": "a wrong name, against import torch", "torch_imported": run(wrong).split()[-1], **refused},
            ],
        )


if __name__ == "__main__":
    main()
