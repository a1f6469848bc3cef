"""Runs the golden checks on any folder of the layout of `data/`: `pytest tests/golden --golden DIR`."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _load_decisions():
    spec = importlib.util.spec_from_file_location("golden_decisions", HERE / "decisions.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


DECISIONS = _load_decisions()


def pytest_addoption(parser):
    parser.addoption("--golden", default=None, metavar="DIR", help="folder with golden fixtures (default: data/)")


def pytest_configure(config):
    config.addinivalue_line("markers", "cases(file, key): one test per entry of `key` in a golden JSON file")


def golden_folder(config) -> Path:
    return Path(config.getoption("--golden", default=None) or HERE / "data").resolve()


def pytest_generate_tests(metafunc):
    marker = metafunc.definition.get_closest_marker("cases")
    if marker is None:
        return
    file, key = marker.args
    folder = golden_folder(metafunc.config)
    found = [case for path in sorted(folder.glob(file)) for case in read_cases(path, key)]
    metafunc.parametrize("case", found, ids=[case["id"] for case in found])


def read_cases(path: Path, key: str) -> list[dict]:
    """The entries of a golden JSON file; those of a model's folder are named after it and need their tensor files."""
    found = json.loads(path.read_text(encoding="utf-8"))[key]
    if isinstance(found, dict):
        found = [{"id": name, "value": value} for name, value in found.items()]
    for i, case in enumerate(found):
        case.setdefault("id", f"{key}{i}")
    if path.name != "cases.json":
        return found
    for case in found:
        case["id"] = f"{path.parent.name}/{case['id']}"
    return [case for case in found if all((path.parent / name).is_file() for name in tensor_files(case))]


def tensor_files(case: dict) -> set[str]:
    """The files a model case reads, below its model's folder."""
    return {case["file"], *(ref["file"] for ref in case.get("reuse", {}).values())}


@pytest.fixture(scope="session")
def golden(request) -> Path:
    """The folder of golden fixtures."""
    return golden_folder(request.config)


@pytest.fixture(scope="session")
def decisions():
    """The module `decisions.py`: `decide(file, case)` and its tables."""
    return DECISIONS
