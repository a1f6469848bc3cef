"""The shipped catalogue is whole, and faults in a catalogue are named."""

import re
from pathlib import Path

import pytest

from vlm.core.config import load_yaml, package_tables
from vlm.core.errors import ConfigError, UnknownName
from vlm.core.fetch.catalogue import (
    Entry,
    HubSource,
    ManualSource,
    UrlSource,
    find_benchmark,
    find_entry,
    find_group,
    load_catalogue,
    with_needs,
)
from vlm.core.organize.organize_set import ORGANIZERS

KNOWN = {"name": "x", "kind": "data", "title": "t", "license": "-", "folder": "dataset/x"}


def test_the_shipped_tables_hold_the_quickstart_and_the_published_weights():
    catalogue = load_catalogue()
    quickstart = {entry.name for entry in find_group("quickstart", catalogue)}
    weights = {"efficientnet-lite0", "smollm2-135m-instruct"}
    assert quickstart == weights | {"easy-vqa", "scikit-image", "scikit-learn", "vega-datasets"}
    assert set(ORGANIZERS) <= set(catalogue)
    for entry in catalogue.values():
        assert all(need in catalogue for need in entry.needs)
        assert entry.source[0].kind != "package" or entry.source[0].size == entry.size


def test_counts_of_the_published_sets_sum_to_the_published_numbers():
    catalogue = load_catalogue()
    v2pe = catalogue["V2PE-Data"].records
    assert (len(v2pe), sum(v2pe.values())) == (45, 1_526_400)
    groups = {"long_vqa_32k": (17, 1_048_400), "long_mr_32k": (8, 195_000), "milebench_16k": (14, 252_000)}
    for folder, (number, lines) in (groups | {"milebench_nh": (6, 31_000)}).items():
        counts = [count for name, count in v2pe.items() if f"/{folder}/" in name]
        assert (folder, len(counts), sum(counts)) == (folder, number, lines)
    sft = catalogue["internvl-chat-v1-2-sft"].records
    assert (len(sft), sum(sft.values())) == (9, 1_267_819)


def test_every_benchmark_table_is_served_by_an_entry_with_its_folder():
    catalogue = load_catalogue()
    tables = [load_yaml(path) for path in package_tables("vlm.eval", "benchmarks").values()]
    published = {t["name"]: t["folder"] for t in tables if t.get("kind") != "ours"}
    served = {table: entry for entry in catalogue.values() for table in entry.benchmarks}
    assert len(published) >= 35
    assert set(served) == set(published)
    for name, folder in published.items():
        assert served[name].folder == f"dataset/{folder}", name
    for name in ("Long-VQA-32k", "mm-niah-LONG-1m", "RefCOCO+-testA", "RefCOCO-val", "DocVQA-test", "CCBench"):
        assert len(find_benchmark(name, catalogue)) == 1
    assert [e.name for e in find_benchmark("RefCOCO-val", catalogue)] == ["RefCOCO"]
    assert {e.name for e in find_benchmark("all", catalogue)} == {e.name for e in served.values()}
    with pytest.raises(UnknownName, match="DocVQA"):
        find_benchmark("docvq", catalogue)


def test_counts_of_benchmarks_agree_with_their_tables():
    catalogue = load_catalogue()
    tables = {t["name"]: t for t in map(load_yaml, package_tables("vlm.eval", "benchmarks").values())}
    for name, file in {
        "AI2D": "test_vlmevalkit.jsonl", "DocVQA": "val.jsonl", "DocVQA-test": "test.jsonl", "InfoVQA": "val.jsonl",
        "GQA": "llava_gqa_testdev_balanced_qwen_format.jsonl", "ScienceQA": "scienceqa_test_img.jsonl",
        "TextVQA": "textvqa_val.jsonl", "VizWiz": "vizwiz_val.jsonl", "VizWiz-test": "vizwiz_test.jsonl",
        "MathVista": "annot_testmini.json", "MM-Vet": "llava-mm-vet.jsonl", "POPE": "llava_pope_test.jsonl",
    }.items():  # fmt: skip
        entry = find_benchmark(name, catalogue)[0]
        assert entry.records[file] == sum(tables[name]["counts"]["groups"].values()), name


def test_every_entry_says_where_it_comes_from_and_what_it_needs_exists():
    catalogue = load_catalogue()
    folders = {entry.folder for entry in catalogue.values()}
    for entry in catalogue.values():
        assert entry.title
        assert entry.license
        assert set(entry.needs) <= set(catalogue)
        assert entry not in with_needs([catalogue[need] for need in entry.needs], catalogue), f"{entry.name}: a circle"
        for source in entry.source:
            if isinstance(source, HubSource):
                assert source.revision is None or re.fullmatch("[0-9a-f]{40}", source.revision), entry.name
            if isinstance(source, ManualSource):
                assert source.paths, entry.name
        for step in entry.organize:
            if step.link:  # leads into a set that the entry needs
                needed = with_needs([entry], catalogue)
                assert any(f"dataset/{step.link.source}/".startswith(f"{n.folder}/") for n in needed), step.link
        targets = [source.target for source in entry.source if isinstance(source, UrlSource)]
        assert len(targets) == len(set(targets)), entry.name
    shared = [e for e in catalogue.values() if e.folder in ("dataset/convllava", "dataset/V2PE-Data")]
    assert len(folders) == len(catalogue) - len(shared) + 2  # a download has its folder for itself
    assert sum(bool(entry.automatic) for entry in shared) == 1


def test_groups_and_kinds_are_found():
    catalogue = load_catalogue()
    assert len(find_group("everything", catalogue)) == len(catalogue)
    assert {e.kind for e in find_group("benchmarks", catalogue)} == {"benchmark"}
    assert catalogue["V2PE-Data"] in find_group("v2pe", catalogue)
    ordered = [e.name for e in with_needs([catalogue["convllava-stage2"]], catalogue)]
    assert ordered.index("sharegpt4v") < ordered.index("convllava-stage1") < ordered.index("convllava-stage2")


def test_entries_are_found_by_name_or_hub_id_in_any_case_and_errors_name_near_ones():
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
        ({"organise": [{"unpack": {"archives": "a", "into": "../x"}}]}, "stay below"),
        ({"organise": [{"link": {"from": "/etc", "to": "x"}}]}, "stay below"),
        ({"organise": [{"link": {"from": "a", "to": "b"}, "jpeg": {"folder": "c"}}]}, "exactly one of"),
        ({"organise": [{}]}, "exactly one of"),
        ({"tree": ["a/../../b"]}, "stay below"),
    ],
)
def test_a_faulty_entry_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Entry.model_validate(KNOWN | {"source": {"kind": "manual", "instructions": "-"}} | change)


def test_a_users_catalogue_adds_entries_and_may_not_replace_shipped_ones(tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    entry = "{name: %s, kind: data, title: t, license: x, folder: dataset/x, source: {kind: url, url: 'http://h/f'}}"
    mine.write_text(f"entries: [{entry % 'mine'}]")
    assert load_catalogue(mine)["mine"].source[0].target == "f"
    mine.write_text(f"entries: [{entry % 'Easy-VQA'}]")
    with pytest.raises(ConfigError, match="already"):
        load_catalogue(mine)
    mine.write_text("entries: [{name: a, colour: red}]")
    with pytest.raises(ConfigError, match=r"mine.yaml: entries.0.colour: unknown key") as error:
        load_catalogue(mine)
    assert "entries.0.license" in str(error.value)
