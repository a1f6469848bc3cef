"""The asked part of a question: from the set's record, through the row of results, to the thumbnail of the report."""

import base64
import io

import pytest
from PIL import Image

from support import report_run
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.loaders.haystack import needles_of
from vlm.eval.mini import make_mini
from vlm.eval.report.gather.samples import TEXT, choose_samples
from vlm.eval.saved.evaluations import find_evaluations


def test_needles_are_numbers_of_images_or_texts():
    names = ["a.png", "b.png", "c.png"]
    assert needles_of({"needles": ["b.png", "The penguin hid."]}, names) == (1, "The penguin hid.")
    for damaged in (None, 5, "b.png", [None, 3, ["a.png"]]):
        assert needles_of({"needles": damaged}, names) == ()
    assert needles_of({}, names) == ()


@pytest.mark.parametrize("name", ["mm-niah", "digit-haystack-1x"])
def test_every_haystack_item_of_a_miniature_says_what_it_asks_about(tmp_path, name):
    table = load_benchmark(name)
    make_mini(table.name, tmp_path)
    items = load_items(table, tmp_path)
    for item in items:
        images = [part["path"] for m in item.messages for part in m["content"] if part["type"] == "image"]
        words = "".join(part["text"] for m in item.messages for part in m["content"] if part["type"] == "text")
        assert item.asked
        for asked in item.asked:
            assert asked in words if isinstance(asked, str) else 0 <= asked < len(images)
    assert any(isinstance(asked, int) for item in items for asked in item.asked)


def picture(path, shade):
    Image.new("RGB", (900, 600), shade).save(path)
    return str(path)


def shown(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def browse(tmp_path, rows):
    report_run.evaluation(tmp_path / "e", rows, "Bench", "m")
    browser = choose_samples(find_evaluations([tmp_path / "e"]))
    return browser["samples"], browser["images"]


def test_the_needle_comes_first_among_the_thumbnails_whatever_its_place(tmp_path):
    paths = [picture(tmp_path / f"{n}.png", (20 * n, 20 * n, 20 * n)) for n in range(12)]
    row = report_run.row("b", "x", paths, "<image>" * 12 + "?", "gold", "a", 1.0, asked=[10, 3])
    (sample,), _ = browse(tmp_path, [row])
    assert sample["files"] == ["10.png", "3.png", "0.png", "1.png", "2.png", "4.png", "5.png", "6.png"]
    assert (sample["asked"], sample["more"]) == (2, 4)


def test_the_sentence_of_a_needle_stays_in_a_prompt_that_is_cut(tmp_path):
    needle = "The little penguin hid a key in the garden."
    prompt = "Before. " * 2000 + needle + " After." * 2000
    row = report_run.row("b", "x", [], prompt, "gold", "a", 1.0, asked=[needle])
    (sample,), _ = browse(tmp_path, [row])
    assert needle in sample["prompt"] and sample["needles"] == [needle]
    assert len(sample["prompt"]) < TEXT + 600


def test_the_reference_box_is_drawn_on_the_thumbnail(tmp_path):
    path, box = picture(tmp_path / "a.png", "black"), [300, 150, 600, 450]
    row = report_run.row("b", "x", [path], "<image>\nthe dog", box, "a", 1.0, meta={"hw": [600, 900]})
    other = report_run.row("b", "y", [path], "<image>\n?", "gold", "a", 1.0)
    samples, images = browse(tmp_path, [row, other])
    boxed, plain = ({s["id"]: s for s in samples}[id_] for id_ in "xy")
    assert (boxed["asked"], plain["asked"]) == (1, 0)
    edge = shown(images[boxed["images"][0]]).getpixel((107, 107))  # on the left line
    assert edge[0] > 120 and shown(images[plain["images"][0]]).getpixel((107, 107))[0] < 20


@pytest.mark.parametrize("asked", [[99], [-1], ["nowhere"], [True], [None, {}], "x", 5])
def test_an_asked_part_that_is_not_there_breaks_nothing(tmp_path, asked):
    row = report_run.row("b", "x", [picture(tmp_path / "a.png", "red")], "<image>?", "gold", "a", 1.0, asked=asked)
    (sample,), _ = browse(tmp_path, [row])
    assert sample["files"] == ["a.png"]
