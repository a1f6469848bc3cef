"""Annotation made and checked record by record: the ledger holds exactly what cannot be used, and counts close."""

import json
from pathlib import Path

import pytest

from support import organize_world as world
from vlm.core.errors import DataError
from vlm.core.home import dataset
from vlm.core.organize.convert_records import iter_json_list
from vlm.core.organize.organize_set import OrganizeOptions, organize
from vlm.core.sample.records import iter_jsonl

picture, downloaded, entry_of, record = world.picture, world.downloaded, world.entry_of, world.record
zip_bytes = world.zip_bytes


@pytest.fixture(autouse=True)
def vlm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "text":
        path.write_text("<html>404 Not Found</html>")
    elif how == "zeros":
        path.write_bytes(data[:200] + bytes(len(data) - 200))
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "text", "zeros", "folder"])
def test_k_damaged_files_of_n_are_exactly_k_lines_of_the_ledger(how):
    n, k = 24, 5
    rows = [record(i, f"{i}.jpg") for i in range(n)]
    folder = downloaded("set", {"a.jsonl": "".join(json.dumps(r) + "\n" for r in rows).encode()})
    for i in range(n):
        (folder / f"{i}.jpg").write_bytes(picture(i))
    spoilt = [3, 4, 11, 17, 23]
    for i in spoilt:
        spoil(folder / f"{i}.jpg", how)
    entry = entry_of("set", [{"records": {"from": "a.jsonl"}}], records={"a.jsonl": n})
    options = OrganizeOptions(verify=True, max_lost=0.5)
    assert organize("set", options, catalogue={"set": entry}) == "organised"
    ledger = [row for _, row in iter_jsonl(folder / "ledger-set.jsonl")]
    assert [row["id"] for row in ledger] == [f"a.jsonl:{i + 1}" for i in spoilt]
    assert {row["stage"] for row in ledger} == {"media"}
    assert all(f"{i}.jpg" in row["reason"] for i, row in zip(spoilt, ledger, strict=True))
    counts = json.loads((folder / ".vlm-organised-set.json").read_text())["counts"]["a.jsonl"]
    assert counts == {"records": n, "used": n - k, "dropped": k, "renamed": 0}


def test_damaged_records_are_in_the_ledger_and_stay_out_of_the_jsonl():
    good = [record(i, "x.jpg") for i in range(3)]
    bad = [
        {"id": 9, "image": "x.jpg", "conversations": []},
        record(10, ["x.jpg", "x.jpg"]),  # one placeholder
        record(11, "../secret.jpg"),
        record(12, "/etc/passwd"),
        {"id": 13, "conversations": [{"from": "robot", "value": "hi"}]},
        "no object",
    ]
    unnamed = {key: value for key, value in record(0, "x.jpg").items() if key != "id"}
    content = json.dumps([*good, *bad, unnamed], indent=2).encode()
    folder = downloaded("set", {"a.json": content, "x.jpg": picture()})
    (dataset() / "secret.jpg").write_bytes(picture())
    entry = entry_of("set", [{"records": {"from": "a.json", "to": "a.jsonl"}}], records={"a.jsonl": 10})
    organize("set", OrganizeOptions(max_lost=1.0), catalogue={"set": entry})
    rows = [row for _, row in iter_jsonl(folder / "a.jsonl")]
    assert rows == [*good, {"id": "a.json-10"} | unnamed]
    ledger = [row for _, row in iter_jsonl(folder / "ledger-set.jsonl")]
    assert [row["id"] for row in ledger] == [f"a.json:{i}" for i in range(4, 10)]
    assert [row["stage"] for row in ledger] == ["read", "read", "media", "media", "read", "read"]
    lines = b"".join(json.dumps(r).encode() + b"\n" for r in good) + b'{"id": 3, "conv\n'
    folder = downloaded("lines", {"a.jsonl": lines, "x.jpg": picture()})
    entry = entry_of("lines", [{"records": {"from": "a.jsonl"}}])
    organize("lines", OrganizeOptions(max_lost=1.0), catalogue={"lines": entry})
    assert "not JSON" in (folder / "ledger-lines.jsonl").read_text()


def test_other_counts_than_published_are_an_error_that_names_each_file():
    downloaded("set", {"a.jsonl": b"{}\n{}\n", "b.jsonl": b"{}\n"})
    entry = entry_of("set", [{"unpack": {"archives": "*.zip"}}], records={"a.jsonl": 3, "b.jsonl": 1, "c.jsonl": 1})
    with pytest.raises(DataError, match=r"set/\*.zip"):
        organize("set", catalogue={"set": entry})
    (dataset() / "set/x.zip").write_bytes(zip_bytes({"x": b"x"}))
    with pytest.raises(DataError) as error:
        organize("set", catalogue={"set": entry})
    assert str(error.value).splitlines()[1:] == ["  a.jsonl: 2 instead of 3", "  c.jsonl: no file instead of 1"]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_a_json_list_is_streamed_in_any_chunks_and_a_broken_one_is_named(tmp_path, chunk):
    values = [{"a": [1, {"b": "]},{"}]}, 12345, "ü\\n", [], None, 1.5, {"long": "x" * 300}]
    for text in (json.dumps(values), json.dumps(values, indent=3, ensure_ascii=False), f"  {json.dumps(values)} \n"):
        (tmp_path / "l.json").write_text(text, encoding="utf-8")
        found = list(iter_json_list(tmp_path / "l.json", chunk=chunk))
        assert found == [(f"l.json:{i}", value) for i, value in enumerate(values, 1)]
        (tmp_path / "l.json").write_text(text.strip()[:-1] + ",", encoding="utf-8")
        with pytest.raises(DataError, match="breaks off"):
            list(iter_json_list(tmp_path / "l.json", chunk=chunk))
    for text, why in (("{}", "not a list"), ("", "breaks off"), ("[1 2]", "malformed"), ("[1,,2]", "malformed")):
        (tmp_path / "l.json").write_text(text)
        with pytest.raises(DataError, match=why):
            list(iter_json_list(tmp_path / "l.json", chunk=chunk))
    (tmp_path / "l.json").write_text("[]")
    assert list(iter_json_list(tmp_path / "l.json", chunk=chunk)) == []
