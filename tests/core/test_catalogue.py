"""The shipped catalogue is whole, and faults in a catalogue are named."""

from pathlib import Path

import pytest

from vlm.core.catalogue import Entry, find_entry, find_group, load_catalogue
from vlm.core.errors import ConfigError, UnknownName
from vlm.core.organise import ORGANISERS

KNOWN = {"name": "x", "kind": "data", "title": "t", "licence": "-", "folder": "dataset/x"}


def test_the_shipped_tables_hold_the_quickstart_and_the_published_weights():
    catalogue = load_catalogue()
    quickstart = {entry.name for entry in find_group("quickstart", catalogue)}
    weights = {"efficientnet-lite0", "smollm2-135m-instruct"}
    assert quickstart == weights | {"easy-vqa", "scikit-image", "scikit-learn", "vega-datasets"}
    for name in (
        "InternVL2-2B",
        "InternVL-Chat-V1-2",
        "ConvLLaVA-sft-1536",
        "ConvLLaVA-pretrain-768",
        "vicuna-7b-v1.5",
    ):
        assert catalogue[name].kind == "weights"
        assert catalogue[name].source[0].revision is None
    assert set(ORGANISERS) <= set(catalogue)
    for entry in catalogue.values():
        assert all(need in catalogue for need in entry.needs)
        assert entry.source[0].kind != "package" or entry.source[0].size == entry.size
    assert sum(catalogue["internvl-chat-v1-2-sft"].records.values()) == 1_267_819


def test_entries_are_found_by_name_or_hub_id_in_any_case_and_near_names_are_told():
    catalogue = load_catalogue()
    assert find_entry("opengvlab/internvl2-2b", catalogue) is catalogue["InternVL2-2B"]
    assert find_entry("EASY-VQA", catalogue) is catalogue["easy-vqa"]
    with pytest.raises(UnknownName, match="easy-vqa"):
        find_entry("easyvqa", catalogue)
    with pytest.raises(UnknownName, match="quickstart"):
        find_group("quick", catalogue)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "../x"}, "stay below"),
        ({"folder": "/etc"}, "stay below"),
        ({"folder": "runs/x"}, "pretrained/ or dataset/"),
        ({"licens": "MIT"}, "Extra inputs"),
        ({"source": {"kind": "url", "url": "http://h/f", "path": "a/../../b"}}, "stay below"),
        ({"source": {"kind": "url", "url": "http://h/f", "members": {"*": "../"}}}, "stay below"),
        ({"source": {"kind": "url", "url": "http://h/f", "sha256": "12"}}, "match pattern"),
        ({"source": {"kind": "ftp"}}, "Input tag"),
    ],
)
def test_a_faulty_entry_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Entry.model_validate(KNOWN | {"source": {"kind": "manual", "instructions": "-"}} | change)


def test_a_catalogue_of_ones_own_adds_entries_and_may_not_replace_shipped_ones(tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    entry = "{name: %s, kind: data, title: t, licence: x, folder: dataset/x, source: {kind: url, url: 'http://h/f'}}"
    mine.write_text(f"entries: [{entry % 'mine'}]")
    assert load_catalogue(mine)["mine"].source[0].target == "f"
    mine.write_text(f"entries: [{entry % 'Easy-VQA'}]")
    with pytest.raises(ConfigError, match="already"):
        load_catalogue(mine)
    mine.write_text("entries: [{name: a, colour: red}]")
    with pytest.raises(ConfigError, match=r"mine.yaml: entries.0.colour: unknown key") as error:
        load_catalogue(mine)
    assert "entries.0.licence" in str(error.value)
