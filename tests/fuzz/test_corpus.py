"""Every input that a fuzzer found worth keeping is read again: nothing but a VlmError comes out."""

from pathlib import Path

import pytest

from fuzz.run import CORPUS, read, unpack
from fuzz.targets import TARGETS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read_or_refused(name: str, world: Path):
    files = sorted((CORPUS / name).glob("*.json"))
    assert files, "an empty corpus proves nothing"
    outcomes = {read(TARGETS[name], unpack(file.read_text()), world) for file in files}
    assert "read" in outcomes
