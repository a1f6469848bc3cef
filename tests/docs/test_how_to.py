"""The how-to pages do what they say: files are written, commands and examples run, in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/how-to").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOKENIZER = ROOT / "tests/golden/data/tokenizers/internlm2"


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, title and content of the fenced blocks of a page, in order."""
    return [match.groups() for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages, and a home, in one folder."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "packages", tmp_path / "packages", ignore=skip)
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    return tmp_path


def run(tree: Path, *words: str) -> str:
    """Run a command with the code of the copy; return what it prints. Warnings are shown, and fail nothing."""
    sources = os.pathsep.join(str(path) for path in sorted(tree.glob("packages/*/src")))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PYTHONPATH": sources, "VLM_HOME": str(tree), "PATH": path, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(words, cwd=tree, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_all_pages_are_there() -> None:
    topics = {"family", "benchmark", "scorer", "dataset-format", "recipe"}
    assert {re.sub(r"^add-an?-", "", page.stem) for page in PAGES} >= {*topics, "your-data", "infer", "own-benchmark"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, tree: Path) -> None:
    ran, printed = 0, ""
    for language, title, content in blocks(page):
        if title:
            file = tree / title
            file.parent.mkdir(parents=True, exist_ok=True)
            if title.endswith(" (add)"):
                file = tree / title.removesuffix(" (add)")
                content = file.read_text(encoding="utf-8") + "\n" + content
            file.write_text(content, encoding="utf-8")
        elif language == "sh":
            printed = run(tree, "bash", "-euc", content)
            ran += 1
        elif language == "python":
            printed = run(tree, sys.executable, "-c", content)
            ran += 1
        elif language == "text":  # what the command above prints, among other lines
            for line in filter(None, content.splitlines()):
                assert line in printed, f"{page.name}: {line!r} is not in\n{printed}"
    assert ran
    for path in re.findall(r"`((?:packages|tests|docs|workflows)/[a-z0-9_/.-]+)`", page.read_text(encoding="utf-8")):
        assert (tree / path).exists() or (ROOT / path).exists(), f"{page.name} names {path}"


def test_the_copy_is_what_runs(tree: Path) -> None:
    assert str(tree) in run(tree, sys.executable, "-c", "import vlm.eval.scorers as s; print(s.__file__)")
