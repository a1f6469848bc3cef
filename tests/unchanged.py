"""Record what a rebuilding must not change, and compare two records.

    python tests/unchanged.py record /tmp/before      # in a checkout of the old commit
    python tests/unchanged.py record /tmp/after       # in a checkout of the new one
    python tests/unchanged.py compare /tmp/before /tmp/after

`record` runs the public command line of the environment it is started with, in a home of its own (DIR/home), on one
thread: the numbers then do not depend on what else the machine does. It writes:

- `data.json`: sha256 of the training sets, the tokenizer and the start checkpoints that the quickstart is made of;
- `losses.json`, `weights.json`: losses of the first 20 steps of four quickstart stages, sha256 of what they export;
- `eval/`: results, summaries and answer keys of every miniature benchmark, three items each, by three models: one
  trained for 20 steps, and two untrained ones, whose long random answers change when anything before them does;
- `dag.txt`: the job counts of `snakemake --profile slurm -n all`;
- `help/`: the help text of every verb.

`compare` exits with 1 when anything differs. Of the help texts it looks for lost verbs, options and defaults: wording
may improve, options may be added. A record takes about five minutes on a quiet machine; the quickstart's data come
from the package index.

The old commit needs an environment in which it is installed (`make setup` in its checkout). PYTHONPATH is not enough:
Python prefers a package with an `__init__.py` to one without, even when it comes later on the path.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
STEPS = 20
TOKENIZER = "pretrained/quickstart-tokenizer"
SETS = ("easy-vqa", "photographs", "digits", "charts")
STARTS = ("quickstart-convllava", "quickstart-v2pe", "quickstart-internvl-chat-v1-2")
STAGES = (
    "quickstart-convllava-stage1",
    "quickstart-v2pe-sft",
    "quickstart-v2pe-long",
    "quickstart-internvl-chat-v1-2-sft",
)
HAYSTACKS = {  # of the quickstart, with fewer documents
    "digit-haystack-train": "--tokens 256 --tokens-per-image 4 --count 200 --times 1x",
    "digit-haystack-short": "--tokens 64 --tokens-per-image 4 --count 200 --seed 3 --times 0.25x",
}
EVALUATIONS = {  # name -> model and what is asked of it
    "trained": "all --model runs/unchanged/train/quickstart-convllava-stage1/model",
    "untrained": "all --model pretrained/quickstart-internvl-chat-v1-2",
    "strides": "mm-niah milebench pope --stride 0.25,4 --model pretrained/quickstart-v2pe",
}
UNLISTED = {"eval": ("score",)}
"""Group -> verbs that its help text names in prose, not in a table."""
VOLATILE = {"key", "scorers"}
"""Keys of results and summaries that hash the source files of the scorers: they name the code, not what it computed."""

GROUPS = {
    "data": "data.json",
    "losses": "losses.json",
    "weights": "weights.json",
    "evaluations": "eval/**/*.json",
    "jobs": "dag.txt",
    "help": "help/*.txt",
}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(home: Path, words: str) -> str:
    """Run a command of this environment; return its standard output. Raises CalledProcessError after showing it."""
    name, *rest = words.split()
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
    env = {**os.environ, **threads, "VLM_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run([str(BIN / name), *rest], env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
        done.check_returncode()
    return done.stdout


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def prepare(home: Path) -> dict[str, str]:
    """Make data sets, tokenizer and start checkpoints as the quickstart does; return their digests."""
    run(home, "vlm download easy-vqa scikit-image scikit-learn vega-datasets")
    run(home, f"vlm data organize {' '.join(SETS)} --questions-per-record 12")
    files = " ".join(f"dataset/{name}/train.jsonl" for name in SETS)
    run(home, f"vlm data tokenizer {files} --out {TOKENIZER} --vocab-size 1024 --template llava_v1")
    for name, options in HAYSTACKS.items():
        place = f"--out {name} --split train --tokenizer {TOKENIZER}/tokenizer.json"
        run(home, f"vlm data build haystack {place} {options}")
    for name in STARTS:
        run(home, f"vlm weights make {name} --out pretrained/{name} --tokenizer {TOKENIZER}")
    made = [*home.glob("dataset/*/*.jsonl"), *home.glob("pretrained/quickstart-*/*.safetensors")]
    made += home.glob("pretrained/quickstart-*/tokenizer.json")
    return {str(path.relative_to(home)): sha256(path) for path in sorted(made)}


def train(home: Path) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Train the stages for a few steps; return losses by stage and digests of the exported weights."""
    losses, weights = {}, {}
    for stage in STAGES:
        run(home, f"vlm train --recipe {stage} --run runs/unchanged --set steps={STEPS} --quiet")
        folder = home / "runs/unchanged/train" / stage
        losses[stage] = [line["loss"] for line in read_lines(folder / "metrics.jsonl")]
        for path in sorted(folder.glob("model/*.safetensors")):
            weights[f"{stage}/{path.name}"] = sha256(path)
    return losses, weights


def steady(value: Any, home: Path) -> Any:
    """The value without volatile keys and without the place of the home."""
    if isinstance(value, dict):
        return {k: steady(v, home) for k, v in value.items() if k not in VOLATILE}
    if isinstance(value, list):
        return [steady(v, home) for v in value]
    return value.replace(str(home), "HOME") if isinstance(value, str) else value


def evaluate(home: Path, out: Path) -> None:
    """Evaluate the miniature benchmarks; keep results, summaries and the key of each stored answer.

    An evaluation that an older version of the code began can be resumed only while the keys are the same.
    """
    for name, words in EVALUATIONS.items():
        run(home, f"vlm eval {words} --mini --limit 3 --name {name} --out runs/eval")
    for summary in sorted((home / "runs/eval").rglob("summary.json")):
        target = out / summary.parent.relative_to(home / "runs/eval")
        target.mkdir(parents=True)
        write(target / "summary.json", steady(json.loads(summary.read_text(encoding="utf-8")), home))
        write(target / "results.json", [steady(row, home) for row in read_lines(summary.with_name("results.jsonl"))])
        answers = read_lines(summary.with_name("outcomes.jsonl"))
        write(target / "keys.json", sorted([answer["id"], answer["key"]] for answer in answers))


def helps(home: Path, verb: str = "") -> Iterator[tuple[str, str]]:
    """Each verb with its help text, groups before their members."""
    text = run(home, f"vlm {verb} --help")
    verb = verb.strip()
    yield verb or "vlm", text
    table = text.partition("─ Commands ─")[2]
    for name in [*re.findall(r"^│ ([a-z][a-z0-9-]*)  ", table, re.MULTILINE), *UNLISTED.get(verb, ())]:
        yield from helps(home, f"{verb} {name}")


def record(out: Path) -> None:
    """Write the record of the running code to `out`, which must be new."""
    home = out.absolute() / "home"
    home.mkdir(parents=True)
    (out / "help").mkdir()
    for verb, text in helps(home):
        (out / "help" / f"{verb.replace(' ', '-')}.txt").write_text(text, encoding="utf-8")
    (out / "dag.txt").write_text(counts(run(home, "snakemake --profile slurm -n all")), encoding="utf-8")
    write(out / "data.json", prepare(home))
    losses, weights = train(home)
    write(out / "losses.json", losses)
    write(out / "weights.json", weights)
    evaluate(home, out / "eval")
    print(f"recorded {len(losses)} stages, {len(list((out / 'eval').rglob('summary.json')))} evaluations in {out}")


def counts(screen: str) -> str:
    """The table of jobs in what Snakemake prints, without its spacing."""
    rows = re.findall(r"^(\w+) +(\d+)$", screen, re.MULTILINE)
    return "".join(f"{rule} {n}\n" for rule, n in dict(rows).items())


def options(text: str) -> str:
    """Options of a help text with their defaults, one a line: `--device default: auto`."""
    entries: list[str] = []
    for line in text.splitlines():
        if re.match(r"│ [ *]{0,3}\S", line):  # what continues an entry is indented further
            entries.append("")
        if entries:
            entries[-1] += line.strip("│* ") + " "
    found = []
    for entry in entries:
        if names := re.match(r"((?:--?[a-z][\w-]*\s+)+)", entry):
            marks = re.findall(r"\[(default: [^]]*|required)\]", re.sub(r"\s+", " ", entry))
            found.append(" ".join([*names[1].split(), *marks]))
    return "\n".join(sorted(found))


def kept(new: str, old: str) -> str:
    """The lines of `new` that `old` has too: what was added is no difference."""
    return "\n".join(line for line in new.splitlines() if line in old.splitlines())


def compare(before: Path, after: Path) -> int:
    """Print each group with its first difference; return the number of groups that differ."""
    wrong = 0
    for group, pattern in GROUPS.items():
        old, new = (
            {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in folder.glob(pattern)}
            for folder in (before, after)
        )
        if group == "help":
            old = {verb: options(text) for verb, text in old.items()}
            new = {verb: kept(options(new[verb]), old[verb]) for verb in new.keys() & old.keys()}
        differ = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        wrong += bool(differ) or not old
        print(f"{group}: " + (f"{len(differ)} of {len(old)} differ" if differ else f"{len(old)} equal"))
        for name in differ[:8]:
            a, b = (texts.get(name, "(absent)").splitlines() for texts in (old, new))
            pair = next(((x, y) for x, y in zip(a, b, strict=False) if x != y), (f"{len(a)} lines", f"{len(b)} lines"))
            print(f"  {name}: {pair[0].strip()[:150]} | {pair[1].strip()[:150]}")
    return wrong


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record", out]:
            record(Path(out))
        case ["compare", before, after]:
            sys.exit(1 if compare(Path(before), Path(after)) else 0)
        case _:
            sys.exit(__doc__)
