"""Data as people write it: the check and training decide alike about every record, and all counts close."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.record_cases import CASES, OK, RED, Case, make_media, turns
from vlm.core.check.check import COLUMNS, ERRORS, WARNINGS, CheckedFile, check
from vlm.core.check.report import CheckReport, collect
from vlm.core.errors import DataError
from vlm.core.home import resolve
from vlm.core.sample.encode import ImageTokenIds
from vlm.core.sample.measure import Rules
from vlm.core.sample.media import load_image
from vlm.train.run.loop import train
from vlm.train.run.metrics import Ledger, read_account
from vlm.train.run.stream import Stream

STAGES = {"missing": "media", "unreadable": "media", "image cut": "encode", "no labels": "encode", "tiles": "pack"}
"""Kind of a fault in the check -> stage in the ledger; all others are `read`."""


@pytest.fixture(scope="module")
def folder(tiny_home) -> Path:
    """The pictures and videos of all cases."""
    path = tiny_home / "dataset/cases"
    make_media(path)
    return path


@pytest.fixture
def compared(folder, recipe, processor, tmp_path):
    """`compared(case)`: the report of the check, and the ledger of one step over all records."""

    def compare(case: Case, *, decode: bool = True, **sets) -> tuple[CheckReport, Ledger, Stream]:
        case.write(folder / "case.jsonl")
        entry = {"name": "case", "file": "dataset/cases/case.jsonl", "root": "dataset/cases", "allow": case.allow}
        made = recipe("strides=null", data=[entry], **{"max_length": 512, **sets})
        spec, (data,) = processor.spec, made.data
        rules = Rules(
            resolve(made.model.start),
            spec.template,
            spec.image_rule,
            processor.tokens_per_tile,
            ImageTokenIds(0, 0, 0),
            spec.system,
            made.max_length,
            made.batch.max_tiles,
        )
        source = CheckedFile("case", resolve(data.file), resolve(data.root), 1.0, data.max_tiles, data.allow)
        report = collect(rules, [source], check(rules, [source], decode=decode))
        stream = Stream(
            recipe("strides=null", f"batch.samples={len(report.lines['case'])}", data=[entry], **sets), processor
        )
        step, ledger = stream.step(0), Ledger(tmp_path)
        ledger.add(0, step.n_samples, step.lost)
        stream.tokens = sum(len(row.input_ids) for row in step.rows)
        return report, ledger, stream

    return compare


def lines(report: CheckReport, kinds) -> set[int]:
    return {fault.line for fault in report.faults if fault.kind in kinds}


def agree(report: CheckReport, ledger: Ledger, stream: Stream) -> None:
    """Both name the same records for reasons of the same stage, both count all of them, and the tokens are equal."""
    facts, entries = report.as_dict(samples=False), ledger.log.read()
    dropped = {int(e["id"].removeprefix("case:")): e["stage"] for e in entries if e["what"] == "dropped"}
    first = {fault.line: fault.kind for fault in reversed(report.errors)}
    assert {line: STAGES.get(kind, "read") for line, kind in first.items()} == dropped
    cut = {int(e["id"].removeprefix("case:")) for e in entries if e["what"] == "truncated"}
    assert lines(report, {"cut"}) - dropped.keys() == cut
    assert facts["usable"] + sum(facts["losses"].values()) == facts["lines"] == ledger.counts["in"]
    assert ledger.counts["used"] + ledger.counts["truncated"] == facts["usable"]
    assert ledger.counts["dropped"] == sum(facts["losses"].values())
    rows = [dict(zip(COLUMNS, row, strict=False)) for row in report.rows["case"].tolist()]
    assert sum(row["tokens_kept"] for row in rows if row["line"] not in dropped) == stream.tokens


@pytest.mark.parametrize("name", CASES)
def test_check_and_training_agree_and_each_line_is_what_it_should_be(compared, name):
    case = CASES[name]
    report, ledger, stream = compared(case)
    wanted = case.kinds | case.decoded
    assert {line for line, kind in wanted.items() if kind in ERRORS} == lines(report, ERRORS)
    for line, kind in wanted.items():
        kinds = {fault.kind for fault in report.faults if fault.line == line}
        assert kind in kinds and kinds <= ERRORS.keys() | WARNINGS.keys()
    for fault in report.faults:
        assert len(fault.message) < 420 and fault.message.isprintable()
    agree(report, ledger, stream)


@pytest.mark.parametrize("name", CASES)
def test_headers_alone_show_all_but_what_only_decoding_shows(compared, name):
    case = CASES[name]
    report, _, _ = compared(case, decode=False)
    assert lines(report, ERRORS) == {line for line, kind in case.kinds.items() if kind in ERRORS}
    for line, kind in case.kinds.items():
        assert kind in {fault.kind for fault in report.faults if fault.line == line}


def test_a_ledger_line_is_one_line_without_a_blob(compared):
    _, ledger, _ = compared(CASES["base64"])
    reasons = [entry["reason"] for entry in ledger.log.read()]
    assert len(reasons) == 4 and all("base64" in reason and len(reason) < 600 for reason in reasons)


def test_a_blank_in_a_name_is_seen(compared):
    report, _, _ = compared(CASES["written for another system"])
    said = next(fault.message for fault in report.faults if fault.line == 2)
    assert said.startswith("no such file: '") and said.endswith("/ images/red.png '")


@pytest.mark.parametrize(("content", "why"), [(json.dumps(OK, indent=2), "JSON list"), (json.dumps(OK), "JSON list")])
def test_one_json_list_is_refused_by_both_with_the_way_out(compared, content, why):
    case = Case([content.encode()])
    with pytest.raises(DataError, match=why) as error:
        compared(case)
    assert "vlm data import" in str(error.value)


def test_utf16_is_refused_by_both(compared, folder, recipe, processor):
    with pytest.raises(DataError, match="UTF-16"):
        compared(Case([json.dumps(OK[0]).encode("utf-16")]))
    entry = {"name": "case", "file": "dataset/cases/case.jsonl", "root": "dataset/cases"}
    with pytest.raises(DataError, match="UTF-16"):
        Stream(recipe(data=[entry]), processor)


def test_colors_are_right_in_every_mode(folder):
    for name in (
        "cmyk.jpg",
        "cmyk.tiff",
        "pages.tiff",
        "anim.gif",
        "anim.webp",
        "anim.png",
        "i.ico",
        "noext",
        "ycc.jpg",
    ):
        pixel = load_image(folder / "images" / name).getpixel((30, 30))
        assert all(abs(a - b) < 12 for a, b in zip(pixel, RED, strict=True)), name
    assert load_image(folder / "images/l16.png").getpixel((0, 0)) == (156, 156, 156)
    assert load_image(folder / "images/phone.jpg").size == (60, 60)


def test_a_run_over_all_cases_closes(folder, recipe, tmp_path):
    made = {}
    for name, case in CASES.items():
        if name != "huge":
            made[name] = f"dataset/cases/{len(made)}.jsonl"
            case.write(folder / f"{len(made) - 1}.jsonl")
    entries = [
        {"name": f"c{i}", "file": file, "root": "dataset/cases", "allow": CASES[name].allow}
        for i, (name, file) in enumerate(made.items())
    ]
    total = sum(len([1 for line in CASES[name].lines if line not in (b"", b" \t")]) for name in made)
    train(recipe(f"batch.samples={total}", "steps=1", "max_lost=1", data=entries), tmp_path / "all", quiet=True)
    account = read_account(tmp_path / "all")
    lost = {name: [k for k in (CASES[name].kinds | CASES[name].decoded).values() if k in ERRORS] for name in made}
    assert account.open == [] and account.counts["in"] == total
    assert account.counts["dropped"] == sum(map(len, lost.values()))
    by_file = Counter(entry["id"].split(":")[0] for entry in account.entries if entry["what"] == "dropped")
    assert by_file == {f"c{i}": len(kinds) for i, kinds in enumerate(lost.values()) if kinds}


TEXTS = st.lists(
    st.sampled_from(["<image>", "<video>", "\ud83d", "a", " ", "<|im_end|>", "图", "long " * 30]), max_size=4
).map("".join)
TURN = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt"]), "value": TEXTS}, optional={"loss": st.sampled_from([0, 1, None, 2])}
)
PATHS = st.sampled_from(["images/red.png", "images/cut.png", "images/none.png", "images", "", "x://y", "1x/" * 2000])
RECORDS = st.fixed_dictionaries(
    {"conversations": st.lists(TURN, max_size=4) | TEXTS.map(lambda t: turns(t, "A"))},
    optional={
        "id": st.none() | st.text(max_size=3) | st.integers(),
        "image": PATHS | st.lists(PATHS, max_size=2) | st.none(),
        "video": st.sampled_from(["v/good.mp4", "v/none.mp4"]) | st.none(),
        "clip": st.none() | st.lists(st.integers(-1, 3), min_size=2, max_size=2),
        "system": TEXTS | st.integers(),
        "images": st.just(["a"]),
    },
)


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(RECORDS | st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")), max_size=6), st.integers(20, 200))
def test_check_and_training_agree_on_any_records(compared, tmp_path, made, longest):
    (tmp_path / "ledger.jsonl").unlink(missing_ok=True)
    agree(*compared(Case([OK[0], *made]), max_length=longest))
