"""An evaluation as a whole process, `vlm eval` against lmms-eval: start, weights, 200 questions, scores, files.

lmms-eval runs its own class for InternVL in transformers' layout, which fixes bfloat16 and one question at a time;
`vlm eval` runs in bfloat16 too, in its usual batches of 8. The weights are random; questions, pictures (four questions
about each, 256 tokens a picture) and the limit of 8 new tokens are the same, one thread. Companions: how many answers
are the same, how many begin with the same letter, and how many different ones there are. The two sides round the
rotation of queries and keys differently in bfloat16, which random weights soon turn into other tokens, and its class
does not stop at the end of a turn.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from harness import paired, report
from peers import ROOT, checkpoint, environment, make_tokenizer, small, version_in

from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini

QUESTIONS, NEW = 200, 8
sys.path.insert(0, str(ROOT / "tests"))
from support.harnesses import LMMS_CODE, LMMS_TASK  # noqa: E402


def write_questions(place: Path) -> Path:
    """Write the questions as JSON lines and as a task of lmms-eval; return the lines' file."""
    data = make_mini("easyVQA", place / "data", n=QUESTIONS // 4)
    lines = []
    for item in load_items(load_benchmark("easyVQA"), data):
        picture, words = item.messages[0]["content"]
        asked = words["text"].removeprefix("\n")
        line = {"id": item.id, "image": str(picture["path"]), "question": asked, "answer": item.gold}
        lines.append(json.dumps({**line, "path": line["image"], "gold": item.gold}) + "\n")
    rows = place / "rows.jsonl"
    rows.write_text("".join(lines))
    tasks = place / "tasks"
    tasks.mkdir()
    task = LMMS_TASK.replace("ROWS", str(rows)).replace("max_new_tokens: 10", f"max_new_tokens: {NEW}")
    (tasks / "mini_pope.yaml").write_text(task)
    (tasks / "mini_pope.py").write_text(LMMS_CODE)
    return rows


def main() -> None:
    python = environment("lmms-eval==0.7.3")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ours_at, peer_at = checkpoint(small(448, depth=3), place, make_tokenizer(place), dtype=torch.float32, gain=6)
        rows = write_questions(place)
        settings = {"VLM_HOME": folder, "HF_HOME": f"{folder}/hf-home", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

        def run(*command: str | Path) -> None:
            done = subprocess.run(command, cwd=place, env=os.environ | settings, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

        def ours() -> None:
            shutil.rmtree(place / "runs", ignore_errors=True)  # else nothing is left to do
            more = ("--scorer", "exact", "--dtype", "bfloat16", "--max-new-tokens", str(NEW), "--out", place / "runs")
            run(sys.executable, "-m", "vlm.cli.main", "eval", rows, "-m", ours_at, *more)

        def peer() -> None:
            model = f"pretrained={peer_at},device=cpu,device_map=cpu"
            more = ("--include_path", place / "tasks", "--batch_size", "1", "--output_path", place / "out")
            run(
                *(python, "-m", "lmms_eval", "--model", "internvl_hf", "--model_args", model),
                *("--tasks", "mini_pope", "--log_samples", *more),
            )

        times = paired(ours, peer, warm_up=False)
        (mine,) = (place / "runs").rglob("results.jsonl")
        theirs = sorted((place / "out").rglob("*samples_mini_pope.jsonl"))[-1]
        got = [json.loads(line)["completion"] or "" for line in mine.read_text().splitlines()]
        want = {s["doc_id"]: s["filtered_resps"] for s in map(json.loads, theirs.read_text().splitlines())}
        assert len(got) == len(want) == QUESTIONS
        both = [(a, (want[i] if isinstance(want[i], str) else want[i][0]).strip()) for i, a in enumerate(got)]
        same, begins = sum(a == b for a, b in both), sum(a[:1] == b[:1] for a, b in both)
        about = {"questions": QUESTIONS, "new_tokens": NEW, "same_answers": same, "same_first_letters": begins}
        about["distinct_answers"] = len(set(got))
        report("peer_lmms_eval", [about | times], version_in(python, "transformers", "lmms-eval"))


if __name__ == "__main__":
    main()
