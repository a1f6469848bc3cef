"""The check counts what the encoder makes, from headers alone, and names every fault at once."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from vlm.core.check.check import COLUMNS, ERRORS, WARNINGS, CheckedFile, check, check_line
from vlm.core.check.report import collect
from vlm.core.errors import DataError
from vlm.core.sample.encode import ImageTokenIds, SampleEncoder
from vlm.core.sample.measure import Rules, SampleMeter, positions_used
from vlm.core.sample.positions import positions
from vlm.core.sample.records import read_record
from vlm.core.sample.tiling import ImageRule
from vlm.core.sample.tokenizer import load_tokenizer

FOLDERS = Path(__file__).parents[1] / "golden" / "data" / "tokenizers"
TILES, PAD = ImageRule(kind="tiles", size=8, max_tiles=6), ImageRule(kind="pad", size=8)
MARKS, NONE = ImageTokenIds(0, 0, 0), ImageTokenIds(None, 0, None)
FAMILIES = {
    "internlm2": ("internlm2-chat", TILES, MARKS),
    "hermes2": ("Hermes-2", TILES, MARKS),
    "llama": ("llava_v1", PAD, NONE),
    "llama-legacy": ("llava_v1", PAD, NONE),
}
STRIDES = (None, 1.0, 0.7, 64.0)


def rules(name="internlm2", **limits) -> Rules:
    template, rule, marks = FAMILIES[name]
    return Rules(FOLDERS / name, template, rule, 4, marks, **{"strides": STRIDES, **limits})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    rng = random.Random(0)
    for i in range(8):
        size = rng.randint(4, 60), rng.randint(4, 60)
        Image.new("RGB", size).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    (folder / "clip").mkdir()
    for i in range(3):
        Image.new("RGB", (9, 9)).save(folder / "clip" / f"{i}.png")
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    template, rule, marks = FAMILIES[request.param]
    encoder = SampleEncoder(load_tokenizer(FOLDERS / request.param), template, rule, 4, marks)
    return encoder, SampleMeter(rules(request.param))


WORDS = st.text("ab é<>|_\n", max_size=12) | st.sampled_from(
    ["", " ", "<|im_end|>", "</s>", "<ref>dog</ref>", "<box>", "USER:", "ASSISTANT: no", "<img>", "<image>", "日本"]
)
ALLOW = ("quoted-placeholders", "empty-answers")
FILES = st.lists(st.sampled_from(["0.png", "1.jpg", "2.png", "3.jpg", "4.png"]), max_size=3)


@st.composite
def records(draw):
    files, turns = draw(FILES), []
    for i in range(draw(st.integers(1, 3))):
        question = draw(WORDS).replace("<image>", "")
        turns.append({"from": "human", "value": ("<image>\n" * len(files) if i == 0 else "") + question})
        turns.append({"from": "gpt", "value": draw(WORDS), "loss": draw(st.sampled_from([0, 1]))})
    return {"id": "r", "image": files, "conversations": turns[: len(turns) - draw(st.booleans())]}


# no deadline: a busy machine must not decide
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=120, deadline=None)
@given(records())
def test_counts_are_those_of_the_encoder(family, root, record):
    encoder, meter = family
    sample = read_record(record, root=root, allow=ALLOW)
    tiles, tokens, labels, kept, labels_kept, *used = meter.measure(sample)
    for stride, positions_ in zip(STRIDES, used, strict=True):
        encoded = encoder.encode(sample, strides=stride)
        assert (encoded.n_tiles, len(encoded), encoded.n_supervised) == (tiles, tokens, labels)
        assert positions_ == np.ceil(encoded.position_ids[-1]) + 1
    assert (kept, labels_kept) == (tokens, labels)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(records(), st.integers(10, 120))
def test_what_max_length_cuts_is_what_the_encoder_cuts(root, record, longest):
    template, rule, marks = FAMILIES["internlm2"]
    encoder = SampleEncoder(load_tokenizer(FOLDERS / "internlm2"), template, rule, 4, marks, "S.")
    meter = SampleMeter(rules(max_length=longest, system="S."))
    sample = read_record(record, root=root, allow=ALLOW)
    try:
        encoded = encoder.encode(sample, strides=1.0, max_length=longest)
    except DataError:
        with pytest.raises(DataError, match="would cut image tokens"):
            meter.measure(sample)
        return
    _, tokens, _, kept, labels_kept, *used = meter.measure(sample)
    assert (kept, labels_kept, kept < tokens) == (len(encoded), encoded.n_supervised, encoded.truncated)
    assert used[STRIDES.index(1.0)] == np.ceil(encoded.position_ids[-1]) + 1


@given(
    st.lists(st.tuples(st.just("text"), st.integers(0, 5)) | st.tuples(st.just("image"), st.integers(1, 13))),
    st.sampled_from([4, 144, 256]),
    st.sampled_from([None, 0.1, 1 / 3, 0.7, 1, 64, 256]),
    st.booleans(),
)
def test_positions_used_are_those_of_the_position_rule(layout, tokens_per_tile, stride, brackets):
    made = positions(layout, tokens_per_tile, stride, brackets=brackets)
    expected = int(np.ceil(made[-1])) + 1 if len(made) else 0
    assert positions_used(layout, tokens_per_tile, stride, brackets) == expected


def test_nothing_is_decoded(root, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("an image was decoded"))
    assert (
        SampleMeter(rules()).measure(read_record(record("<image>\n" * 2, "A", image=["0.png", "1.jpg"]), root=root))[0]
        > 1
    )


def test_a_header_is_read_once(root):
    meter = SampleMeter(rules())
    for _ in range(5):
        meter.measure(read_record(record("<image>", "A", image="0.png"), root=root))
    assert meter.header.cache_info().misses == 1


def test_frames_of_a_video_are_a_tile_each(root):
    measured = SampleMeter(rules()).measure(read_record(record("<video>\nQ", "A", video="clip"), root=root))
    encoder = SampleEncoder(load_tokenizer(FOLDERS / "internlm2"), *FAMILIES["internlm2"][:2], 4, MARKS)
    encoded = encoder.encode(read_record(record("<video>\nQ", "A", video="clip"), root=root))
    assert measured[:3] == [encoded.n_tiles, len(encoded), encoded.n_supervised] and measured[0] == 8


def record(*values, **more):
    roles = ("human", "gpt")
    turns = [{"from": roles[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "r", "conversations": turns, **more}


BROKEN = {
    "json": b'{"id": 1,',
    "json ": b"[1, 2]",
    "json  ": b"\0" * 40,
    "json   ": '{"id": "红"}'.encode("gbk"),
    "json    ": b"[" * 100_000 + b"]" * 100_000,
    "json     ": b'{"id": ' + b"1" * 5000 + b"}",
    "turns": {"id": "r", "conversations": []},
    "turns ": {"id": "r", "conversations": [{"from": "human", "value": "Q"}, {"from": "human", "value": "Q"}]},
    "turns  ": {"id": "r", "conversations": [{"from": "robot", "value": "Q"}]},
    "turns   ": {"id": "r", "conversations": [{"from": ["gpt"], "value": 3}, "text"]},
    "turns    ": record("Q", "cut \ud83d"),
    "turns     ": {"messages": [{"role": "user", "content": "Q"}]},
    "turns      ": {"id": "r", "conversations": [{"from": "gpt", "value": "A"}]},
    "turns       ": {**record("Q", "A"), "system": ["be kind"]},
    "turns        ": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A", "loss": 0.5}]},
    "empty answer": record("Q", " \n"),
    "empty answer ": record("Q", "", "Q", "A"),
    "keys": record("<image>", "A", images=["0.png"]),
    "keys ": record("Q", "A", image="0.png", video="clip"),
    "path": record("Q", "A", image=[1, 2]),
    "path ": record("<image>", "A", image=[["0.png"]]),
    "path  ": record("<image>", "A", image={"path": "0.png"}),
    "path   ": record("<image>", "A", image=""),
    "path    ": record("<image><image>", "A", image=["0.png", None]),
    "path     ": record("<image>", "A", image="https://example.com/0.png"),
    "path      ": record("<image>", "A", image="data:image/png;base64,iVBORw0KGgo"),
    "path       ": record("<image>", "A", image="iVBORw0KGgo" + "A" * 2000),
    "path        ": record("<image>", "A", image="x" * 300 + ".png"),
    "path         ": record("<image>", "A", image="re\0d.png"),
    "path          ": record("<image>", "A", image="\ud83d.png"),
    "outside": record("<image>", "A", image="../0.png"),
    "outside ": record("<image>", "A", image="/etc/passwd"),
    "clip": record("<video>", "A", video="clip", clip="0-2"),
    "clip ": record("<video>", "A", video="clip", clip=[1, 0.5]),
    "clip  ": record("<video>", "A", video="clip", clip=[0, float("nan")]),
    "clip   ": record("<video>", "A", video="clip", clip={"start": 0}),
    "clip    ": record("<image>", "A", image="0.png", clip=[0, 1]),
    "placeholders": record("<image><image>", "A", image=["0.png"]),
    "placeholders ": record("Q", "A", image=["0.png", "1.jpg"]),
    "placeholders  ": record("<image>", "A"),
    "placeholders   ": record("<image>", "A", image=None),
    "placeholders    ": record("<image>", "A", image=[]),
    "placeholders     ": record("<image>\nQ", "A", video="clip"),
    "placeholders      ": record("Draw.", "<image>", image="0.png"),
    "placeholders       ": record("Q", "like <image>"),
    "placeholders        ": {
        "conversations": [{"from": "gpt", "value": "<image>"}, *record("Q", "A")["conversations"]],
        "image": "0.png",
    },
    "missing": record("<image>", "A", image="nothing.png"),
    "missing ": record("<video>", "A", video="nothing.mp4"),
    "missing  ": record("<image>", "A", image="0.png/x.png"),
    "unreadable": record("<image>", "A", image="text.png"),
    "unreadable ": record("<image>", "A", image="empty.png"),
    "unreadable  ": record("<video>", "A", video="no-frames"),
    "unreadable   ": record("<image>", "A", image="clip"),
    "image cut": record("<image>" * 9, "A", image=["0.png"] * 9),
    "no labels": record("Q"),
    "no labels ": record("Q " * 60, "A"),
    "no labels  ": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A", "loss": 0}]},
    "tiles": record("<image>\n" * 2, "A", image=["wide.png"] * 2),
    "cut": record("Q", "A " * 200),
    "unfinished": record("<image>", "A", image="cut.png"),
    "unfinished ": record("<image>", "A", image="cut.jpg"),
    "rotated": record("<image>", "A", image="phone.jpg"),
    "transparent": record("<image>", "A", image="logo.png"),
    "float": record("<image>", "A", image="float.tiff"),
    "empty turn": record(" \n", "A"),
    "first turn": {"id": "r", "conversations": [{"from": "gpt", "value": "A"}, *record("Q", "A")["conversations"]]},
    "unanswered": record("Q", "A", "Q"),
    "placeholder in text": record("<image>", "A <image>", image="0.png"),
    "marker": record("Q <|im_end|>", "A"),
    "no id": {**record("Q", "A"), "id": None},
    "no id ": {"conversations": record("Q", "A")["conversations"]},
}


@pytest.fixture(scope="module")
def faulty(root):
    (root / "text.png").write_text("hello")
    (root / "empty.png").write_bytes(b"")
    (root / "no-frames").mkdir()
    Image.effect_noise((80, 80), 50).save(root / "whole.jpg")
    Image.new("RGB", (48, 8)).save(root / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 9)).save(root / "phone.jpg", exif=exif)
    Image.new("RGBA", (9, 9)).save(root / "logo.png")
    Image.fromarray(np.full((9, 9), 0.8, np.float32)).save(root / "float.tiff")
    for name, whole in (("cut.png", "0.png"), ("cut.jpg", "whole.jpg")):
        content = (root / whole).read_bytes()
        (root / name).write_bytes(content[: max(60, len(content) // 2)])
    return root


def checked(raw, root, allow=(), **limits):
    """The check of one line."""
    line = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return check_line(SampleMeter(rules(**limits)), line, CheckedFile("f", Path("f.jsonl"), root, allow=allow), "f:1")


@pytest.mark.parametrize("kind", BROKEN)
def test_each_fault_has_its_kind(faulty, kind):
    one = checked(BROKEN[kind], faulty, max_length=100, max_tiles=10, system="S.")
    found = {k for k, _ in one.faults}
    assert kind.strip() in found and found <= ERRORS.keys() | WARNINGS.keys()
    assert all(message and len(message) < 300 and message.isprintable() for _, message in one.faults)
    assert (one.row is None) or kind.strip() in WARNINGS or kind.strip() in ("no labels", "tiles")
    if kind.strip() in WARNINGS:
        assert one.row is not None and not found & ERRORS.keys()


def test_every_kind_of_fault_that_one_record_can_have_is_tried():
    assert {k.strip() for k in BROKEN} == (ERRORS.keys() | WARNINGS.keys()) - {"other", "same id", "same content"}


def test_all_faults_of_a_sample_are_named_at_once(faulty):
    broken = record("<image>" * 3, " ", image=["https://a/b.png", "text.png"], images=["0.png"], clip=1)
    one = checked(broken, faulty)
    assert one.row is None and {k for k, _ in one.faults} == {"placeholders", "path", "empty answer", "keys", "clip"}
    files = record("<image><image>", "A", image=["nothing.png", "text.png"])
    assert [k for k, _ in checked(files, faulty).faults] == ["missing", "unreadable"]


def test_what_a_set_may_hold_on_purpose_needs_its_switch(faulty):
    quoting, empty = record("How to write <image>?", "Like <image>."), record("Q", "", "Q", "A")
    for broken, switch, kind in ((quoting, "quoted-placeholders", "placeholders"), (empty, "empty-answers", None)):
        assert {k for k, _ in checked(broken, faulty).faults} & ERRORS.keys() == {kind or "empty answer"}
        allowed = checked(broken, faulty, allow=(switch,))
        assert allowed.row is not None and not {k for k, _ in allowed.faults} & ERRORS.keys()


def test_keys_that_nothing_reads_are_counted_once_a_file(faulty, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    turns = [{"from": "human", "value": "Q", "weight": 0}, {"from": "gpt", "value": "A", "weight": 0}]
    lines = [{"id": i, "conversations": turns, "source": "web", "width": 3} for i in range(3)] + [record("Q", "A")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = CheckedFile("a", tmp_path / "a.jsonl", tmp_path)
    facts = collect(rules(), [source], check(rules(), [source])).as_dict()
    assert facts["unread"] == {"a": {"source": 3, "width": 3, "turn.weight": 3}} and facts["usable"] == 4


def test_an_exception_that_nobody_expects_costs_one_sample_and_names_its_type(faulty, monkeypatch, caplog):
    def explode(self, sample):
        raise ZeroDivisionError("by a fault of ours")

    monkeypatch.setattr(SampleMeter, "measure", explode)
    with caplog.at_level("DEBUG", "vlm"):
        one = checked(record("Q", "A"), faulty)
    assert one.faults == [("other", "ZeroDivisionError: by a fault of ours")]
    assert "in explode" in caplog.text, "the traceback is in the log"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_changes_nothing(faulty):
    Image.new("RGB", (9, 9)).save(faulty / "exif.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    one = checked(record("<image>", "A", image="exif.jpg"), faulty)
    assert one.row is not None and one.faults == []


def test_decoding_shows_what_headers_do_not(faulty, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    content = bytearray((faulty / "0.png").read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    (faulty / "flipped.png").write_bytes(content)
    names = ["0.png", "flipped.png", "cut.png", "no-frames"]
    lines = [record("Q", "A", **{"video" if n == "no-frames" else "image": n}) for n in names]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = CheckedFile("a", tmp_path / "a.jsonl", faulty)
    found = {d: collect(rules(), [source], check(rules(), [source], decode=d)).losses for d in (False, True)}
    assert found == {False: {"unreadable": 1}, True: {"unreadable": 3}}


@pytest.fixture
def sources(root, tmp_path):
    rng = random.Random(1)
    lines = []
    for i in range(1300):
        names = [f"{j}.{'jpg' if j % 2 else 'png'}" for j in rng.choices(range(5), k=i % 3)]
        lines.append({**record("<image>" * len(names) + f"Q {i}", "A " * (i % 9 + 1), image=names), "id": i})
    lines[700]["id"] = lines[3]["id"]
    lines[900] = {**lines[5], "id": "copy"}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "b.jsonl").write_text(json.dumps(lines[5]) + "\n")
    return [CheckedFile("a", tmp_path / "a.jsonl", root, 0.5), CheckedFile("b", tmp_path / "b.jsonl", root, 3)]


def test_a_report_is_the_same_for_any_number_of_workers(sources, monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    reports = [collect(rules(), sources, check(rules(), sources, workers)).as_dict() for workers in (1, 2, 3)]
    assert reports[0] == reports[1] == reports[2]
    facts = reports[0]
    assert json.loads(json.dumps(facts)) == facts
    assert facts["lines"] == facts["usable"] == 1301 and len(facts["rows"]["a"]) == 1300
    assert facts["faults"] == {"same content": 2, "same id": 1}
    assert [(p["source"], p["line"], p["kind"], p["message"]) for p in facts["problems"]] == [
        ("a", 701, "same id", "as a:4"),
        ("a", 901, "same content", "as a:6"),
        ("b", 1, "same content", "as a:6"),
    ]
    assert facts["sources"][0]["share_of_samples"] == pytest.approx(650 / 653)
    tokens = [row[facts["columns"].index("tokens")] for row in facts["rows"]["a"]]
    assert facts["worst"][0]["tokens"] == max(tokens) == facts["measures"]["tokens"]["max"]
    assert sum(facts["histogram"]["samples"]) == 1301 and facts["histogram"]["edges"][0] == min(tokens)


def test_a_report_of_an_empty_file_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text("")
    source = CheckedFile("a", tmp_path / "a.jsonl", tmp_path)
    facts = collect(rules(), [source], check(rules(), [source])).as_dict()
    assert facts["lines"] == 0 and facts["measures"]["tokens"]["max"] == 0 and facts["rows"] == {"a": []}
    assert facts["columns"][: len(COLUMNS)] == list(COLUMNS)
