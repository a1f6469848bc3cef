"""Run the golden checks on any folder of fixtures: `pytest tests/golden --golden DIR`."""

from pathlib import Path

import pytest
from golden.fixtures import Fixtures, find_fixtures

DATA = Path(__file__).parent / "data"
FOUND = pytest.StashKey[Fixtures]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=None, metavar="DIR", help="folder with golden fixtures (default: data/)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cases(section, per='entry'): one test per entry of a section, or with per='file' per file"
    )


def fixtures_of(config: pytest.Config) -> Fixtures:
    """The fixtures of this run, read once."""
    if FOUND not in config.stash:
        folder = Path(config.getoption("--golden", default=None) or DATA).resolve()
        config.stash[FOUND] = find_fixtures(folder)
    return config.stash[FOUND]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("cases")
    if marker is None:
        return
    found, (section,) = fixtures_of(metafunc.config), marker.args
    entries = found.entries[section]
    if marker.kwargs.get("per") == "file":
        entries = list({entry.path: entry for entry in reversed(entries)}.values())[::-1]
    parameters = [pytest.param(entry, id=entry.id) for entry in entries]
    if not parameters:
        reason = pytest.mark.skip(reason=f"no {section} below {found.root}")
        parameters = [pytest.param(None, id="none", marks=reason)]
    metafunc.parametrize("entry", parameters)


@pytest.fixture(scope="session")
def found(request: pytest.FixtureRequest) -> Fixtures:
    """Everything that the folder of this run holds."""
    return fixtures_of(request.config)
