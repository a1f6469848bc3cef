"""No sample is lost silently: k faulty of n give exactly k entries, the counts add up, too many fail the run."""

import json
import random

import numpy as np
import pytest

from vlm.core.check.check import ERRORS, CheckedFile, check
from vlm.core.check.report import collect
from vlm.core.errors import ConfigError, DataError
from vlm.core.home import resolve
from vlm.core.sample.encode import ImageTokenIds
from vlm.core.sample.measure import Rules
from vlm.models import load_processor
from vlm.models.checkpoint.layout import read_layout
from vlm.models.processor import Processor
from vlm.train.recipe.recipe import training_spec
from vlm.train.run import checkpoint
from vlm.train.run.loop import train
from vlm.train.run.metrics import Ledger, Log, read_account
from vlm.train.run.stream import PackedRow, Stream

FAULTS = {"s4": "truncated png", "s7": "not an image", "s10": "missing", "s15": "not JSON", "s18": "no answer"}


@pytest.fixture
def faulty(home, records, recipe):
    """A recipe over 24 samples of which five cannot be used."""
    folder = home / "dataset/faulty"
    if not folder.exists():
        (folder / "images").mkdir(parents=True)
        for record in records:
            for name in record["image"]:
                (folder / name).write_bytes((home / "dataset/tiny" / name).read_bytes())
        path = folder / "images/4_0.png"
        path.write_bytes(path.read_bytes()[:60])
        (folder / "images/7_0.png").write_text("hello")
        (folder / "images/10_0.png").unlink()
        lines = {r["id"]: json.dumps(r) for r in records}
        lines["s15"] = lines["s15"][:-20]
        lines["s18"] = json.dumps({**records[18], "conversations": records[18]["conversations"][:1]})
        (folder / "train.jsonl").write_text("\n".join(lines.values()) + "\n")
    entry = {"name": "faulty", "file": "dataset/faulty/train.jsonl", "root": "dataset/faulty"}
    return lambda *overrides: recipe("steps=4", *overrides, data=[entry])


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_faulty_sample_is_named_once_and_the_counts_close(faulty, tmp_path):
    train(faulty("max_lost=0.5"), tmp_path, quiet=True)
    ledger = read(tmp_path / "ledger.jsonl")
    assert {e["id"] for e in ledger} == {f"faulty:{int(i[1:]) + 1}" for i in FAULTS} and len(ledger) == len(FAULTS)
    assert {e["what"] for e in ledger} == {"dropped"} and all(e["reason"] for e in ledger)
    stages = {e["id"]: e["stage"] for e in ledger}
    assert [stages[f"faulty:{n}"] for n in (5, 8, 11, 16, 19)] == ["media", "media", "media", "read", "encode"]
    counts = json.loads((tmp_path / "summary.json").read_text())["ledger"]
    assert counts == {"in": 24, "used": 19, "dropped": 5, "truncated": 0, "replaced": 0}
    assert sum(line["samples"] for line in read(tmp_path / "metrics.jsonl")) == 19


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    """One byte of the pixels changed: the checksum of a PNG chunk no longer holds."""
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)


WAYS = {
    "cut in half": halved,
    "empty": lambda path: path.write_bytes(b""),
    "a page of an error": lambda path: path.write_text("<html>404 Not Found</html>"),
    "gone": lambda path: path.unlink(),
    "a flipped byte": flipped,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def test_files_corrupted_six_ways_are_exactly_the_entries_of_the_ledger(home, records, recipe, processor, tmp_path):
    folder = home / "dataset/corrupt"
    (folder / "images").mkdir(parents=True)
    for record in records:
        for name in record["image"]:
            (folder / name).write_bytes((home / "dataset/tiny" / name).read_bytes())
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with_images = [i for i, r in enumerate(records) if r["image"]]
    victims = dict(zip(WAYS, random.Random(0).sample(with_images, len(WAYS)), strict=True))
    for way, i in victims.items():
        WAYS[way](folder / records[i]["image"][-1])
    entry = {"name": "corrupt", "file": "dataset/corrupt/train.jsonl", "root": "dataset/corrupt"}
    stream, ledger = Stream(recipe("batch.samples=8", data=[entry]), processor), Ledger(tmp_path)
    used = []
    for step in range(3):
        data = stream.step(step)
        ledger.add(step, data.n_samples, data.lost)
        used += [i for row in data.rows for i in row.ids]
    entries = ledger.log.read()
    assert sorted(e["id"] for e in entries) == sorted(f"corrupt:{i + 1}" for i in victims.values())
    assert {(e["what"], e["stage"]) for e in entries} == {("dropped", "media")}
    assert sorted(used) == sorted(r["id"] for i, r in enumerate(records) if i not in victims.values())
    assert ledger.counts == {"in": 24, "used": 18, "dropped": 6, "truncated": 0, "replaced": 0}


def test_the_check_foretells_what_the_ledger_will_hold(faulty, processor):
    """All but what only decoding shows: and of a file that is cut short the check warns."""
    recipe = faulty("batch.samples=24")
    spec, entry = processor.spec, recipe.data[0]
    tokens = ImageTokenIds(0, 0, 0)
    rules = Rules(
        resolve(recipe.model.start), spec.template, spec.image_rule, processor.tokens_per_tile, tokens, max_length=512
    )
    source = CheckedFile(entry.name, resolve(entry.file), resolve(entry.root))
    report = collect(rules, [source], check(rules, [source]))
    foretold = {f"faulty:{f.line}" for f in report.faults if f.kind in ERRORS or f.kind == "unfinished"}
    assert foretold == {one.id for one in Stream(recipe, processor).step(0).lost} and len(foretold) == len(FAULTS)


def test_the_account_of_a_run_closes_with_its_summary(faulty, tmp_path):
    train(faulty("max_lost=0.5"), tmp_path, quiet=True)
    account = read_account(tmp_path)
    assert account.open == [] and account.steps == 4
    assert account.counts == json.loads((tmp_path / "summary.json").read_text())["ledger"]
    assert sum(account.reasons.values()) == len(FAULTS) == len(account.entries)
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "ledger.jsonl").write_text("".join(lines[1:]))
    assert len(read_account(tmp_path).open) == 2, (
        "neither the steps nor the summary agree with a ledger that lost a line"
    )


def test_truncated_samples_are_used_and_named(recipe, processor, tmp_path):
    whole = Stream(recipe("batch.samples=24", "batch.packing=none"), processor).step(0).rows
    longest = max(len(row.input_ids) for row in whole)
    expected = {f"tiny:{int(row.ids[0][1:]) + 1}" for row in whole if len(row.input_ids) == longest}
    train(recipe("steps=4", f"max_length={longest - 1}", "max_lost=0"), tmp_path, quiet=True)
    ledger = read(tmp_path / "ledger.jsonl")
    assert {e["id"] for e in ledger} == expected and len(ledger) == len(expected)
    assert {(e["what"], e["reason"]) for e in ledger} == {("truncated", f"cut to {longest - 1} tokens")}
    counts = json.loads((tmp_path / "summary.json").read_text())["ledger"]
    assert counts == {"in": 24, "used": 24 - len(expected), "dropped": 0, "truncated": len(expected), "replaced": 0}


def test_too_many_lost_fail_the_run_at_once_and_a_higher_limit_continues(faulty, tmp_path):
    with pytest.raises(DataError, match=r"of .* samples so far were dropped.*\n.*at most 10\.00%") as error:
        train(faulty("max_lost=0.1", "batch.samples=1", "steps=24"), tmp_path, quiet=True)
    assert "ledger.jsonl" in str(error.value)
    steps = len(read(tmp_path / "metrics.jsonl"))
    assert steps < 23 and len(read(tmp_path / "ledger.jsonl")) == 3, "the third of 24 is the one too many"
    assert not (tmp_path / "model").exists()
    with pytest.raises(DataError, match="so far were dropped"):
        train(faulty("max_lost=0.1", "batch.samples=1", "steps=24"), tmp_path, quiet=True)
    train(faulty("max_lost=0.25", "batch.samples=1", "steps=24"), tmp_path, quiet=True)
    assert len(read(tmp_path / "ledger.jsonl")) == 5
    assert json.loads((tmp_path / "summary.json").read_text())["ledger"]["in"] == 24


def test_a_step_without_a_usable_sample_changes_nothing_and_the_run_continues(faulty, tmp_path):
    train(faulty("max_lost=0.25", "batch.samples=1", "steps=24", "save_every=1"), tmp_path, quiet=True)
    steps = {line["step"] for line in read(tmp_path / "metrics.jsonl")}
    lost = {entry["step"] for entry in read(tmp_path / "ledger.jsonl")}
    assert len(lost) == 5 and steps | lost == set(range(24)) and not steps & lost
    assert checkpoint.complete(tmp_path / "checkpoints")


def test_a_loss_that_is_not_finite_names_the_samples(home, recipe, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = home / "pretrained/tiny-nan"
    if not folder.exists():
        folder.mkdir()
        for file in (home / "pretrained/tiny-internvl2").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        state = load_file(folder / "model.safetensors")
        state["language_model.model.norm.weight"][0] = float("nan")
        save_file(state, folder / "model.safetensors")
    broken = recipe("model.start=pretrained/tiny-nan", "batch.samples=2")
    said = pytest.warns(RuntimeWarning, match=r"NaN or infinity in 1 of .*: language_model\.model\.norm\.weight;")
    with said, pytest.raises(DataError, match="loss is nan at step 0") as error:
        train(broken, tmp_path, quiet=True)
    data = Stream(broken, load_processor(folder)).step(0)
    assert all(repr(i) in str(error.value) for row in data.rows for i in row.ids)
    assert not (tmp_path / "model").exists() and not checkpoint.complete(tmp_path / "checkpoints")


def test_a_log_is_cut_back_to_a_step_and_a_torn_last_line_goes(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for step in range(5):
        log.write(step=step, loss=0.5)
    with log.path.open("a") as f:
        f.write('{"step": 2, "lo')
    log.cut(3)
    assert log.read() == [{"step": step, "loss": 0.5} for step in range(3)]


def test_the_first_label_of_a_document_has_no_predecessor_and_no_weight():
    ids = np.arange(6)
    row = PackedRow(ids, ids, np.full(6, 0.5, np.float32), ids, np.array([0, 2, 6], np.int32), None, ["a", "b"])
    assert row.weight == 0.5 * 4


@pytest.mark.parametrize(
    "override",
    [
        "model.spec={image_rule: {max_tiles: 1}, system: Short.}",
        "model.spec={template: Hermes-2-2024-07}",
        "data=[{name: t, file: dataset/tiny/train.jsonl, root: dataset/tiny, max_tiles: 1}]",
        "data=[{name: t, file: dataset/tiny/train.jsonl, root: dataset/tiny, max_tiles: 2},"
        " {name: u, file: dataset/tiny/train.jsonl, root: dataset/tiny}]",
        "max_length=200",
        "batch.max_tiles=2",
    ],
)
def test_the_check_of_a_recipe_counts_what_training_counts(recipe, recipe_file, override):
    """The rules come from the recipe: changes of the model's spec, limits of an entry, --set."""
    from vlm.cli.commands.data_check import rules_and_sources

    rules, sources = rules_and_sources(str(recipe_file), *[None] * 4, (), *[None] * 3, overrides=[override])
    facts = collect(rules, sources, check(rules, sources)).as_dict()
    made = recipe(override, f"batch.samples={facts['lines']}")
    spec = training_spec(made.model, read_layout(resolve(made.model.start)).spec)
    step = Stream(made, Processor(spec, resolve(made.model.start))).step(0)
    kept, tiles = (facts["columns"].index(name) for name in ("tokens_kept", "tiles"))
    bad = {(p["source"], p["line"]) for p in facts["problems"] if p["kind"] in ERRORS}
    rows = [r for name, rows in facts["rows"].items() for r in rows if (name, r[0]) not in bad]
    assert sum(row[kept] for row in rows) == sum(len(row.input_ids) for row in step.rows) > 0
    assert sum(row[tiles] for row in rows) == sum(0 if r.pixels is None else len(r.pixels) for r in step.rows)
    assert facts["lines"] == step.n_samples and sum(facts["losses"].values()) == step.n_dropped


def test_entries_of_one_name_are_refused(recipe):
    entry = {"name": "x", "file": "dataset/tiny/train.jsonl", "root": "dataset/tiny"}
    with pytest.raises(ConfigError, match="two entries are named x"):
        recipe(data=[entry, entry])


def test_the_switches_of_an_entry_leave_the_digest_of_older_runs_alone(recipe):
    entry = {"name": "x", "file": "dataset/tiny/train.jsonl", "root": "dataset/tiny"}
    plain, allowing = recipe(data=[entry]), recipe(data=[{**entry, "allow": ["empty-answers"]}])
    assert "allow" not in plain.model_dump(mode="json")["data"][0] and plain.digest != allowing.digest


def test_a_key_that_nothing_reads_is_said_once_a_file(home, records, recipe, processor):
    lines = [{**r, "source": "web"} for r in records]
    lines[0]["conversations"][1]["weight"] = 0
    (home / "dataset/tiny/keys.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    entry = {"name": "keys", "file": "dataset/tiny/keys.jsonl", "root": "dataset/tiny"}
    stream = Stream(recipe("batch.samples=24", data=[entry]), processor)
    notes = sorted(note.split(": ", 1)[1] for note in [*stream.step(0).notes, *stream.step(1).notes])
    assert notes == [
        "the key `source` is not read",
        "the key `turn.weight` is not read; write `loss: 0` on an answer that is not to be learned",
    ]


def test_an_exception_that_nobody_expects_is_one_entry_of_the_ledger(recipe, processor, tmp_path, monkeypatch, caplog):
    encode = Processor.encode

    def explode(self, messages, **how):
        if how["id"] == "s3":
            raise RecursionError("by a fault of ours \ud83d\x1b[31m")
        return encode(self, messages, **how)

    monkeypatch.setattr(Processor, "encode", explode)
    stream, ledger = Stream(recipe("batch.samples=24"), processor), Ledger(tmp_path)
    with caplog.at_level("DEBUG", "vlm"):
        data = stream.step(0)
    ledger.add(0, data.n_samples, data.lost)
    (entry,) = ledger.log.read()
    assert entry["id"] == "tiny:4" and "RecursionError: by a fault of ours \\ud83d\\x1b[31m" in entry["reason"]
    assert ledger.counts == {"in": 24, "used": 23, "dropped": 1, "truncated": 0, "replaced": 0}
    assert "in explode" in caplog.text, "the traceback is in the log"
