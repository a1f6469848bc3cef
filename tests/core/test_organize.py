"""Training sets made from small sources of the official form: counts, schema, determinism, no-op."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.core.fetch.catalogue import find_entry, load_catalogue
from vlm.core.fetch.manifest import install
from vlm.core.home import dataset
from vlm.core.organize import organize_set
from vlm.core.organize.organize_set import OrganizeOptions, organize
from vlm.core.sample.records import iter_jsonl, read_record
from vlm.core.synth.sets import charts
from vlm.core.synth.sets.chart_tables import Numbers, comparisons, series
from vlm.core.synth.sets.charts import questions
from vlm.core.synth.sets.photographs import load_photographs

QUESTIONS = [[f"question {i} of {picture}?", f"a{i}", picture] for picture in (2, 0, 1) for i in range(4 + picture)]


@pytest.fixture(autouse=True)
def vlm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))


def downloaded(name: str, files: dict[str, bytes]) -> Path:
    """The folder of a source as `vlm download` leaves it."""
    folder = dataset() / name
    staged = []
    for target, content in files.items():
        path = folder / "staging" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        staged.append((path, target))
    install(folder, staged, name=name, source="test")
    return folder


def easy_vqa() -> Path:
    return downloaded("easy-vqa", {"train/questions.json": json.dumps(QUESTIONS).encode()})


def rows(path: Path) -> list[dict]:
    return [record for _, record in iter_jsonl(path)]


@pytest.mark.parametrize("k", [1, 4, 100])
def test_every_question_of_easy_vqa_is_used_exactly_once(k):
    folder = easy_vqa()
    assert organize("easy-vqa", OrganizeOptions(questions_per_record=k)) == "organised"
    records = rows(folder / "train.jsonl")
    used = Counter()
    for record in records:
        sample = read_record(record, root=folder)
        assert 1 <= len(sample.messages) // 2 <= k
        assert [p["type"] for p in sample.messages[0]["content"]] == ["image", "text"]
        turns = record["conversations"]
        assert turns[0]["value"].startswith("<image>\n")
        picture = int(Path(record["image"]).stem)
        for human, gpt in zip(turns[::2], turns[1::2], strict=True):
            used[(human["value"].removeprefix("<image>\n"), gpt["value"], picture)] += 1
    assert used == Counter(map(tuple, QUESTIONS))
    assert len(records) == sum(-(-n // k) for n in (4, 5, 6))


def test_descriptions_say_what_the_answers_about_a_picture_tell():
    questions = [
        ["what color is the circle?", "red", 0],
        ["is there a blue shape?", "no", 0],
        ["is no triangle present?", "no", 1],  # the color stays open
        ["is there not a teal shape?", "yes", 1],
        ["is a gray shape present?", "yes", 2],  # the shape stays open
        ["does the image not contain a green shape?", "no", 3],
        ["is a triangle present?", "yes", 3],
    ]
    folder = downloaded("easy-vqa", {"train/questions.json": json.dumps(questions).encode()})
    organize("easy-vqa")
    found = {
        Path(r["image"]).stem: [t["value"] for t in r["conversations"]] for r in rows(folder / "descriptions.jsonl")
    }
    question = "<image>\nWhat is in the picture?"
    assert found == {"0": [question, "A red circle."], "3": [question, "A green triangle."]}


def test_a_set_that_an_earlier_release_made_is_made_again(monkeypatch):
    folder = easy_vqa()
    with monkeypatch.context() as earlier:
        earlier.setattr(organize_set, "REVISION", organize_set.REVISION - 1)
        organize("easy-vqa")
    assert organize("easy-vqa") == "organised" and (folder / "descriptions.jsonl").is_file()


def test_the_order_within_a_picture_is_a_function_of_the_seed():
    folder = easy_vqa()
    made = {}
    for seed in (0, 1, 0):
        organize("easy-vqa", OrganizeOptions(seed=seed))
        content = (folder / "train.jsonl").read_bytes()
        assert made.setdefault(seed, content) == content
    assert made[0] != made[1]
    assert organize("easy-vqa", OrganizeOptions(seed=0)) == "present"
    (folder / "train.jsonl").write_text("cut")
    assert organize("easy-vqa", OrganizeOptions(seed=0)) == "organised"
    assert (folder / "train.jsonl").read_bytes() == made[0]


def test_missing_or_damaged_sources_and_wrong_names_say_what_to_do():
    with pytest.raises(DataError, match="vlm download scikit-learn"):
        organize("digits")
    folder = easy_vqa()
    (folder / "train" / "questions.json").unlink()
    with pytest.raises(DataError, match="vlm download easy-vqa"):
        organize("easy-vqa")
    with pytest.raises(UnknownName, match="photographs"):
        organize("photos")
    with pytest.raises(ConfigError, match="0 questions"):
        organize("easy-vqa", OrganizeOptions(questions_per_record=0))


def digits_csv(n: int) -> bytes:
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.integers(0, 17, (n, 64)), np.arange(n) % 10])
    table[0, :64] = 16 * (np.arange(64) // 32)  # upper half paper, lower half ink
    return gzip.compress("\n".join(",".join(map(str, row)) for row in table).encode())


def test_digits_are_dark_on_white_and_split_in_file_order():
    downloaded("scikit-learn", {"digits.csv.gz": digits_csv(1797)})
    assert organize("digits") == "organised"
    folder = dataset() / "digits"
    train, test = rows(folder / "train.jsonl"), rows(folder / "test.jsonl")
    assert (len(train), len(test)) == (1437, 360)
    assert [t["conversations"][1]["value"] for t in train[:3]] == ["zero", "one", "two"]
    assert test[0]["conversations"][1]["value"] == "seven"
    assert not {r["image"] for r in train} & {r["image"] for r in test}
    with Image.open(folder / train[0]["image"]) as picture:
        assert picture.size == (64, 64)
        assert picture.getpixel((32, 5)) > 240
        assert picture.getpixel((32, 60)) < 15
    assert organize("digits") == "present"


def test_a_wrong_number_of_digits_is_refused_and_nothing_is_left_as_complete():
    downloaded("scikit-learn", {"digits.csv.gz": digits_csv(1500)})
    with pytest.raises(DataError, match=r"test.jsonl has 63 records"):
        organize("digits")
    assert not (dataset() / "digits" / "train.jsonl").exists()


def test_photographs_have_answers_of_the_promised_length_and_small_pictures():
    catalogue = load_catalogue()
    files: dict[str, dict[str, bytes]] = {"scikit-image": {}, "scikit-learn": {}}
    picture = dataset() / "p.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGBA", (1024, 600), (0, 0, 0, 0)).save(picture)
    for photograph in load_photographs().values():
        files[photograph.source][photograph.file] = picture.read_bytes()
    for name, content in files.items():
        downloaded(name, content)
    organize("photographs", catalogue=catalogue)
    folder = dataset() / "photographs"
    records = rows(folder / "train.jsonl")
    assert len(records) == find_entry("photographs", catalogue).records["train.jsonl"] == len(load_photographs())
    for record in records:
        sample = read_record(record, root=folder)
        assert 3 <= len(sample.messages) // 2 <= 5
        turns = {h["value"]: g["value"] for h, g in zip(*[iter(record["conversations"])] * 2, strict=True)}
        assert 6 <= len(turns["Describe the picture."].split()) <= 20
        with Image.open(folder / record["image"]) as opened:
            assert opened.size == (512, 300)
            assert opened.getpixel((5, 5)) == (255, 255, 255)
    assert Counter(r["haystack"] for r in records)["test"] >= 5


def vega_tables() -> dict[str, bytes]:
    """Tables with the columns of vega-datasets and invented numbers."""
    rng = np.random.default_rng(0)

    def value() -> float:
        return round(float(rng.uniform(5, 50)), 2)

    days = [(y, m, d) for y in range(2012, 2016) for m in range(1, 13) for d in range(1, 8)]
    weather = [f"{y}/{m:02}/{d:02},{value()},{rng.choice(['sun', 'rain', 'fog'])}" for y, m, d in days]
    sectors = ["construction", "manufacturing", "retail_trade", "government", "information"]
    jobs = [
        f"{y}-{m:02}-01," + ",".join(str(value()) for _ in sectors) for y in range(2006, 2016) for m in range(1, 13)
    ]
    symbols = ["AAPL", "IBM", "MSFT", "GOOG"]
    shares = [f"{s},Jan 1 {y},{value()}" for s in symbols for y in range(2000, 2011) for _ in range(12)]
    power = [f"{y}-01-01,{s},{value()}" for s in ("Coal", "Wind", "Sun") for y in range(2001, 2018)]
    tables = {
        "seattle-weather.csv": ["date,temp_max,weather", *weather],
        "us-employment.csv": ["month," + ",".join(sectors), *jobs],
        "stocks.csv": ["symbol,date,price", *shares],
        "iowa-electricity.csv": ["year,source,net_generation", *power],
    }
    cars = [
        {"Year": f"{y}-01-01", "Origin": o, "Miles_per_Gallon": value(), "Horsepower": None if i else value()}
        for y in range(1970, 1983)
        for o in ("USA", "Japan", "Europe")
        for i in range(2)
    ]
    sites = [
        {"variety": v, "year": y, "site": s, "yield": value()}
        for v in "ABCDEFGHIJ"
        for y in (1931, 1932)
        for s in "abcdef"
    ]
    months = [f"{y}-{m:02}-01" for y in (1854, 1855) for m in range(1, 13)]
    flowers = ("sepalLength", "sepalWidth", "petalLength", "petalWidth")
    lists = {
        "cars.json": cars,
        "barley.json": sites,
        "crimea.json": [{"date": m, "wounds": value(), "disease": value(), "other": value()} for m in months],
        "iris.json": [{k: value() for k in flowers} | {"species": s} for s in ("setosa", "virginica")],
        "driving.json": [{"year": y, "miles": value(), "gas": value()} for y in range(1956, 1970)],
        "wheat.json": [{"year": str(y), "wheat": value()} for y in range(1600, 1700, 5)],
        "ohlc.json": [{"date": d, "open": value(), "high": 1, "low": 1, "close": 2} for d in months],
    }
    csvs = {name: "\n".join(lines).encode() for name, lines in tables.items()}
    return csvs | {name: json.dumps(value).encode() for name, value in lists.items()}


def test_charts_are_drawn_from_tables_with_questions_that_have_one_answer(monkeypatch):
    monkeypatch.setattr(charts, "TRAIN", 40)  # 300 charts take ten seconds
    monkeypatch.setattr(charts, "TEST", 10)
    downloaded("vega-datasets", vega_tables())
    catalogue = load_catalogue()
    records = {"train.jsonl": 40, "test.jsonl": 10}
    catalogue["charts"] = catalogue["charts"].model_copy(update={"records": records})
    assert organize("charts", catalogue=catalogue) == "organised"
    folder = dataset() / "charts"
    train, test = rows(folder / "train.jsonl"), rows(folder / "test.jsonl")
    assert (len(train), len(test)) == (40, 10)
    kinds = Counter(r["conversations"][1]["value"] for r in train + test)
    assert set(kinds) == {"bar chart", "line chart", "pie chart"}
    assert min(kinds.values()) >= 3
    for record in train + test:
        read_record(record, root=folder)
        with Image.open(folder / record["image"]) as picture:
            assert picture.size == (336, 336)
            assert len(picture.convert("RGB").getcolors(336 * 336)) > 3
    assert organize("charts", catalogue=catalogue) == "present"


def test_the_tables_give_enough_charts():
    downloaded("vega-datasets", vega_tables())
    folder = dataset() / "vega-datasets"
    compared = comparisons(folder)
    assert len(compared) + len(series(folder)) + sum(n.share for n in compared) >= charts.TRAIN + charts.TEST == 300
    assert all(2 <= len(n.values) == len(n.labels) <= 6 and min(n.values) > 0 for n in compared)


def test_a_question_that_the_chart_leaves_in_doubt_is_not_asked():
    clear = dict(questions("bar", Numbers("t", ("a", "b", "c"), (1.0, 5.0, 9.0)), ["red"]))
    assert clear["Which bar is the highest?"] == "c"
    assert clear["Which bar is the lowest?"] == "a"
    assert clear["How many bars are there?"] == "three"
    assert clear["What colour are the bars?"] == "red"
    close = dict(questions("pie", Numbers("t", ("a", "b", "c"), (1.0, 9.0, 9.1)), ["red", "blue", "green"]))
    assert "Which slice is the largest?" not in close
    assert close["What colour is the smallest slice?"] == "red"
    line = dict(questions("line", Numbers("t", ("1", "2", "3"), (5.0, 9.0, 5.1)), ["pink"]))
    assert "Does the line end higher than it starts?" not in line
    rising = dict(questions("line", Numbers("t", ("1", "2", "3"), (5.0, 9.0, 6.0)), ["pink"]))
    assert rising["Does the line end higher than it starts?"] == "yes"
