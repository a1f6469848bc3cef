"""Long-VQA's scorers: both modes side by side, edges the fixtures leave out, tokens as the Java program gives them."""

import importlib.util
import itertools
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_tables import table_words

from vlm.core.errors import DataError
from vlm.core.extras import install_line
from vlm.eval.measures import english
from vlm.eval.measures.bleu import bleu4, bleu_counts
from vlm.eval.measures.english import english_words, noun_lemma, nouns
from vlm.eval.measures.ptb import lines, words
from vlm.eval.measures.rouge import lcs_words
from vlm.eval.scorers import SCORERS
from vlm.eval.scorers.due import normalize
from vlm.eval.scorers.longvqa import METRICS, TASKS, longvqa_rectify

ROWS = [name for name in SCORERS if name.startswith(("due_", "owl_")) and name != "owl_iou"] + ["longvqa_textvqa"]


def one(reply: Any, reference: Any) -> list[dict[str, Any]]:
    return [{"id": 0, "le": -1, "pr": reply, "an": reference}]


def both(name: str, **inputs: Any) -> tuple[Any, Any]:
    return SCORERS[name](**inputs, compat="upstream"), SCORERS[name](**inputs, compat="fixed")


# both modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "published", "corrected"),
    [
        ("north", "no", "north"),
        ("north-east", "no", "north-east"),
        ("None", "no", "none"),
        ("November", "no", "november"),
        ("Yesterday", "yes", "yesterday"),
        ("no-one", "no", "no-one"),
        ("No. Two cats", "no", "no"),
        ("yes, it is", "yes", "yes"),
        ("no", "no", "no"),
    ],
)
def test_only_the_word_no_is_no_in_fixed_mode(text: str, published: str, corrected: str) -> None:
    assert both("longvqa_rectify", task="chartqa", an=text) == (published, corrected)


def test_north_is_no_wrong_answer_made_right_in_fixed_mode() -> None:
    rows = [{"id": 0, "pr": "north", "an": "November"}]
    assert both("longvqa_end_to_end", task="gqa", rows=rows) == ({"RACC": 100.0}, {"RACC": 0.0})


def test_boxes_apart_on_both_axes_do_not_overlap_in_fixed_mode() -> None:
    assert both("owl_iou", target=[0, 0, 10, 10], prediction=[20, 20, 30, 30]) == (1.0, 0.0)
    assert both("owl_iou", target=[0, 0, 10, 10], prediction=[10, 10, 0, 0]) == (1.0, 0.0)
    assert both("owl_iou", target=[0, 0, 10, 10], prediction=[0, 0, 10, 5]) == (1.0, 1.0)
    with pytest.raises(ZeroDivisionError):
        SCORERS["owl_iou"]([0, 0, 1, 1], [2, 3, 3, 4])
    assert SCORERS["owl_iou"]([0, 0, 1, 1], [2, 3, 3, 4], compat="fixed") == 0.0


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("reply", ["", " ", "\n", ".", None])
def test_an_empty_or_missing_reply_is_never_right_in_fixed_mode(name: str, reply: str | None) -> None:
    assert SCORERS[name](one(reply, ""), compat="fixed") == 0


@pytest.mark.parametrize("name", ROWS)
def test_no_rows_give_no_number_in_fixed_mode(name: str) -> None:
    assert SCORERS[name]([], compat="fixed") is None


@pytest.mark.parametrize("task", [*TASKS, "unheard-of"])
def test_a_sample_that_ran_out_of_memory_counts_in_fixed_mode(task: str) -> None:
    text = "a red bus on the left of two lamps"
    rows = [{"id": 0, "pr": text, "an": text}, {"id": 1, "pr": None, "an": text}]
    (upstream,) = SCORERS["longvqa_end_to_end"](task, rows[:1]).values()
    (fixed,) = SCORERS["longvqa_end_to_end"](task, rows, compat="fixed").values()
    assert upstream == pytest.approx(100, abs=1e-5) and fixed <= 50


def test_published_exceptions_keep_their_names() -> None:
    with pytest.raises(ZeroDivisionError):
        SCORERS["owl_anls"](one(".", ""))
    with pytest.raises(ZeroDivisionError):
        SCORERS["longvqa_end_to_end"]("docvqa", [{"id": 0, "pr": ".", "an": "."}])
    with pytest.raises(AssertionError):
        SCORERS["due_anls"](one(["a", "b"], "a"))
    with pytest.raises(AssertionError):
        SCORERS["longvqa_textvqa"](one("a", ["a", "b"]))
    with pytest.raises(AssertionError):
        SCORERS["due_acc"]([{"id": 0, "pr": "a"}])
    with pytest.raises(AssertionError):
        SCORERS["owl_bleu4"](one("a", []))
    for name in ("owl_eacc", "owl_racc", "owl_cacc", "owl_anls", "longvqa_textvqa"):
        with pytest.raises(ZeroDivisionError):
            SCORERS[name]([])
    assert SCORERS["due_f1"]([]) == SCORERS["due_wtq"]([]) == SCORERS["owl_bleu4"]([]) == 0


def test_lists_of_references_and_several_replies() -> None:
    assert SCORERS["longvqa_textvqa"](one("a cat", ["cat"] * 2 + ["dog"] * 8)) == pytest.approx(60)
    assert SCORERS["longvqa_textvqa"](one("cat", ["cat", "dog"]), compat="fixed") == pytest.approx(100 / 6)
    assert SCORERS["due_anls"](one(["x", "cats"], ["cat", "dog"]), compat="fixed") == 75
    assert SCORERS["due_wtq"](one(["a", "3"], ["3.0", "A."])) == 100 and SCORERS["due_wtq"](one(["a"], ["a", "b"])) == 0
    assert SCORERS["longvqa_end_to_end"]("gqa", [{"id": 0, "pr": "cats", "an": ["dog", "cat"]}], compat="fixed") == {
        "RACC": 100
    }


def test_f1_matches_each_reference_once() -> None:
    rows = [{"id": 0, "pr": "a", "an": "a"}, {"id": 0, "pr": "a", "an": "b"}]
    assert SCORERS["due_f1"](rows) == 50 and SCORERS["due_acc"](rows) == 50
    rows = [{"id": 0, "pr": "a", "an": "b"}, {"id": 0, "pr": "b", "an": "a"}]
    assert SCORERS["due_f1"](rows) == 100 and SCORERS["due_acc"](rows) == 0


@pytest.mark.parametrize(
    ("reply", "reference", "score"),
    [
        ("3", "3.0", 1),
        ("1_0", "10", 1),
        ("1,000", "1000", 0),
        ("2001-05-03", "2001-5-3", 1),
        ("2001-xx-xx", "2001", 1),
        ("2001-13-01", "2001-13-1", 0),
        ("xx-xx-xx", "XX-XX-XX", 1),
        ("inf", "infinity", 0),
        ("2.9999999", "3", 0),  # the published int() cuts it to 2
        ("hello (note) (two)", "hello", 1),
        ("hello[1]†", "hello", 1),
        ("[5]", "5", 0),
        ("“Café”", '"cafe"', 1),
    ],
)
def test_wtq_values(reply: str, reference: str, score: int) -> None:
    assert SCORERS["due_wtq"](one(reply, reference)) == 100 * score


def test_wtq_normal_form() -> None:
    assert normalize('  "A – B"  (c) [12]') == "a - b"
    assert normalize("(only)") == "(only)" and normalize("x..") == "x."


# words and lemmas ----------------------------------------------------------------------------------------------------


def test_the_word_data_is_that_of_the_fixtures() -> None:
    assert len(english_words()) == 235_970
    lemmas, irregular = nouns()
    assert len(lemmas) == 117_798 and len(irregular) == 2_050 and irregular["geese"] == ["goose"]


@pytest.mark.parametrize(
    ("word", "lemma"),
    [
        *[("cats", "cat"), ("glasses", "glass"), ("women", "woman"), ("knives", "knife")],
        *[("news", "news"), ("has", "ha"), ("geese", "goose"), ("boxes", "box")],
        ("", ""),
        ("catss", "catss"),
        ("日本", "日本"),
    ],
)
def test_noun_lemmas(word: str, lemma: str) -> None:
    assert noun_lemma(word) == lemma


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("swimming pool", "swim pool"),
        ("making", "make"),
        ("king", "king"),
        ("Running", "run"),
        ("twenty", "20"),
        ("1,234.5 kg", "1234.5"),
        ("[(50%)]", "50%"),  # the sign goes before the brackets do
        ("1:2", "0.5"),
        ("1/0", "1/0"),
        ("1/2:3", "1/2:3"),
        ("1e400/2", "inf"),
        ("  .", ""),
        ("a  b", "a  b"),
    ],
)
def test_the_long_normalization(text: str, clean: str) -> None:
    assert longvqa_rectify("vizwiz", text) == clean


def test_short_normalizations() -> None:
    assert longvqa_rectify("svqa", " B. cats.") == "B" and longvqa_rectify("svqa", "cats") == "cats"
    assert longvqa_rectify("tabfact", "yes indeed") == "Yes" and longvqa_rectify("docvqa", " cats. ") == "cats"
    assert longvqa_rectify("anything", "cats") == "cats"
    assert set(TASKS.values()) == METRICS.keys() and len(TASKS) == 17


@pytest.mark.parametrize("load", [english_words, nouns])
def test_missing_word_data_says_what_to_install(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "english_words", None)
    monkeypatch.setattr(english, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="is not installed") as error:
        load.__wrapped__()
    assert error.value.fix == install_line("eval")


def test_another_release_of_the_lemma_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(english, "find_spec", lambda name: importlib.util.find_spec("vlm"))
    with pytest.raises(DataError, match=r"WordNet 3\.0 is not installed"):
        nouns.__wrapped__()


# tokens and BLEU -----------------------------------------------------------------------------------------------------

JAVA = {
    "Two cats aren't here, are they?": "two cats are n't here , are they ?",
    "St. Mary's R&D dept. costs $1,250.50 (approx).": "st. mary 's r&d dept. costs $ 1,250.50 -lrb- approx -rrb- .",
    "I cannot, I won't; 'tis gonna rain...": "i can not , i wo n't ; 't is gon na rain ...",
    "U.S.A. wins. The J. Smith Co. said so": "u.s.a. wins . the j. smith co. said so",
    "visit http://www.example.com/a?b=c or me@x.org #tag @user": (
        "visit http://www.example.com/a?b=c or me@x.org #tag @user"
    ),
    '“Quoted” ‘words’ – and “more” — "here" it\'s': "`` quoted '' ` words ' -- and `` more '' -- `` here '' it 's",
    "20-year-old T-shirt and/or 3/4 of 1 1/2 cups": "20-year-old t-shirt and/or 3/4 of 1 1/2 cups",
    "10:30:00 on 12/25/2019, call (555) 123-4567": "10:30:00 on 12/25/2019 , call -lrb-555-rrb- 123-4567",
    "a.b café 42% -0.5 .75 1_000 x_y": "a.b café 42 % -0.5 .75 1_000 x_y",
    "<b>bold</b> [abc] {x} <3 >> :-) ;)": "<b> bold </b> -lsb- abc -rsb- -lcb- x -rcb- < 3 >> :--rrb- ;-rrb-",
    "rock 'n' roll o'clock '90s dogs' Cap'n": "rock 'n' roll o'clock '90s dogs ' cap'n",
    "AT&T, M&M's &amp; Q&A etc. The end": "at&t , m&m 's & q&a etc. . the end",
    "C++ and C# file.txt. 10² ½ °C 5€ £7": "c++ and c# file.txt . 10 ² 1/2 ° c 5 $ # 7",
    "No. 5 vs. Fig. 3 Ph.D. a.m. Inc": "no. 5 vs. fig. 3 ph.d. a.m. inc",
    "naïve\xadly co\xadop 日本 русский 😀 ok": "naïvely coop 日本 русский ok",
}
"""Line -> what CoreNLP 3.4.1's tokenizer printed for these lines as one text (spaces inside a token are no-break)."""


def test_tokens_are_those_of_the_java_program() -> None:
    found = [" ".join(row).replace("\xa0", " ") for row in lines("\n".join(JAVA))]
    assert found == list(JAVA.values())


def test_the_next_line_decides_about_an_abbreviation() -> None:
    assert lines("made by Acme Inc.\nThe end")[0][-2:] == ["inc.", "."] and lines("Inc. said")[0] == ["inc.", "said"]
    assert words(["a\rb", "c"]) == [["a"], ["b"]], "a carriage return ends a line, as published"


def test_punctuation_is_dropped_and_a_token_with_a_space_counts_as_two_words() -> None:
    assert words(['A (b), "c"; 1 1/2 -- d!']) == [["a", "-lrb-", "b", "-rrb-", "c", "1", "1/2", "d"]]
    assert words([""]) == [[]] and words([]) == []


@given(st.text("abcXY019é ", max_size=40))
def test_plain_words_stay_whole(text: str) -> None:
    found = " ".join(token for row in lines(text) for token in row)
    assert found.replace("\xa0", " ") == " ".join(text.lower().split())


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=3))
def test_every_caption_has_its_row_with_any_text(texts: list[str]) -> None:
    assert len(words([text.replace("<", "") for text in texts])) == len(texts)


def test_bleu_of_a_corpus() -> None:
    same = bleu_counts(["a cat sat on the mat"], [["A cat sat on the mat."]])
    assert same.tolist() == [[6, 5, 4, 3, 6, 5, 4, 3, 6, 6]]
    assert bleu4(same.sum(axis=0)) == pytest.approx(1, abs=1e-8)
    two = bleu_counts(["the the the", "x"], [["the cat", "the the dog"], ["y"]])
    assert two.tolist() == [[2, 1, 0, 0, 3, 2, 1, 0, 3, 3], [0, 0, 0, 0, 1, 0, 0, 0, 1, 1]]


# ROUGE-L -------------------------------------------------------------------------------------------------------------


def test_common_words_of_all_short_texts_and_of_texts_with_equal_ends() -> None:
    short = [text for n in range(5) for text in itertools.product("abc", repeat=n)]
    assert all(lcs_words(x, y) == set(table_words(x, y)) for x in short for y in short)
    for x, y in (("abcab", "abab"), ("aab", "ab"), ("baac", "ddba"), ("abcde", "abcde"), ("xabcy", "xay")):
        assert lcs_words(tuple(x), tuple(y)) == set(table_words(x, y))
