"""Programs of others in virtual environments of their own.

The environments see the packages of this one (torch is not installed again) and are kept in pytest's cache.
"""

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def environment(cache, package):
    """The Python of a virtual environment with that package, made once; skips where it cannot be installed."""
    folder = Path(cache.mkdir("harness-" + package.replace("==", "-")))
    python, done = folder / "bin" / "python", folder / "done"
    if not done.exists():
        venv.create(folder, clear=True, with_pip=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        parent = sysconfig.get_path("purelib")
        (site / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
        for wanted in ([package], ["--no-deps", "-e", str(ROOT / "packages" / "eval")]):
            command = [str(python), "-m", "pip", "install", "--quiet", *wanted]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                pytest.skip(f"{wanted[-1]} cannot be installed here: {result.stderr.strip().splitlines()[-1]}")
        done.touch()
    return python


def call(python, home, *arguments, **variables):
    fixed = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf"), "OMP_NUM_THREADS": "1"}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "PYTEST"))}
    command = [str(python), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=home, env={**inherited, **fixed, **variables})
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


LMMS_TASK = """
task: mini_pope
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_visual: !function mini_pope.picture
doc_to_text: "{{question}}"
doc_to_target: "{{gold}}"
generation_kwargs: {max_new_tokens: 10, temperature: 0, do_sample: false}
process_results: !function mini_pope.scores
metric_list: [{metric: exact, aggregation: mean, higher_is_better: true}]
metadata: [{version: 0}]
"""
LMMS_CODE = """
from PIL import Image

def picture(doc):
    return [Image.open(doc["path"])]

def scores(doc, results):
    return {"exact": float(results[0] == doc["gold"])}
"""
