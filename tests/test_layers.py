"""The house's structure: a namespace without __init__.py, imports that never run up a floor, a CLI without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BELOW = {
    "core": set(),
    "models": {"core"},
    "train": {"core", "models"},
    "eval": {"core", "models"},
    "cli": {"core", "models", "train", "eval"},
}
DISTRIBUTED = {"processes.py", "group.py"}
SOURCES = sorted(ROOT.glob("packages/*/src/vlm/*/**/*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_vlm_namespace_has_no_init() -> None:
    assert SOURCES
    assert not list(ROOT.glob("packages/*/src/vlm/__init__.py"))


@pytest.mark.parametrize("package", BELOW)
def test_no_import_runs_up_a_floor(package: str) -> None:
    allowed = BELOW[package] | {package}
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        if path.parts[len(ROOT.parts) + 1] == package
        for name in imported(path)
        if name.startswith("vlm.") and name.split(".")[1] not in allowed
    ]
    assert not wrong


def test_core_imports_no_torch() -> None:
    wrong = [
        str(p)
        for p in SOURCES
        if "/core/" in str(p)
        for n in imported(p)
        if n.split(".")[0] in ("torch", "transformers")
    ]
    assert not wrong


def test_only_parallel_and_attention_touch_torch_distributed() -> None:
    wrong = [
        str(p) for p in SOURCES for n in imported(p) if n.startswith("torch.distributed") and p.name not in DISTRIBUTED
    ]
    assert not wrong


def test_help_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys, time; t = time.process_time(); sys.argv = ['vlm', '--help']\n"
        "from vlm.cli.main import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print(time.process_time() - t, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    best = []  # processor seconds: a busy machine must not decide
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds, torch, numpy = done.stdout.split()[-3:]
        assert (torch, numpy) == ("False", "False")
        best.append(float(seconds))
    assert min(best) <= 0.6


def test_no_silent_handlers() -> None:
    wrong = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                wrong.append(f"{path}:{node.lineno}")
    assert not wrong
