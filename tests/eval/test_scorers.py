"""Scorers: the corrected mode, the edges the fixtures leave out, and equality with slow reference implementations."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_tables import table_distance, table_words

from vlm.eval.measures.letters import label
from vlm.eval.measures.letters import read_label as first_label
from vlm.eval.measures.rouge import lcs_words, rouge_l
from vlm.eval.measures.text import contractions
from vlm.eval.scorers import SCORERS
from vlm.eval.scorers.mmniah import cells
from vlm.eval.scorers.vqa import anls

OPTIONS = ["At the end", "At the beginning", "In the middle", "Throughout"]


def fixed(name: str, *values: object, **more: object) -> object:
    return SCORERS[name](*values, **more, compat="fixed")


# an empty prediction is never right ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["", " ", "\n"])
@pytest.mark.parametrize(
    ("name", "gold"),
    [
        ("exact_match_accuracy", ""),
        ("relaxed_accuracy", ""),
        ("anls", [""]),
        ("vqa_accuracy", [""] * 10),
        ("word_match", ""),
        ("milebench_needle", ""),
        ("milebench_contains", ""),
        ("milebench_rouge_l", ""),
        ("mmniah_text", ""),
        ("mmniah_counting", []),
    ],
)
def test_an_empty_prediction_is_never_scored_correct(name: str, gold: object, reply: str) -> None:
    inputs = (gold, reply) if name.startswith("mmniah") else (reply, gold)
    assert fixed(name, *inputs) == 0


def test_an_empty_reply_is_no_yes_and_no_letter_in_fixed_mode() -> None:
    assert fixed("pope_parse", "") == "unknown" and SCORERS["pope_parse"]("") == "yes"
    assert fixed("pope_metrics", ["", ""], ["yes", "no"])["accuracy"] == 0
    third = {"pred_response": "", "gt_response": OPTIONS[2], "choice_list": OPTIONS}
    assert SCORERS["milebench_multichoice"](**third)["score"] == 1  # the published rule reads C
    assert fixed("milebench_multichoice", **third) | {"levels": 0} == {
        "extracted": "",
        "score": 0,
        "accuracy": 0.0,
        "levels": 0,
    }
    assert fixed("mmniah_choice", 0, "") == 0


# corrected rules ---------------------------------------------------------------------------------------------------


def test_relaxed_accuracy_is_relative_to_the_reference_in_fixed_mode() -> None:
    both = [
        (SCORERS["relaxed_accuracy"](p, a), fixed("relaxed_accuracy", p, a)) for p, a in (("95", "100"), ("100", "95"))
    ]
    assert both == [(0, 1), (1, 0)]
    assert fixed("relaxed_accuracy", "yes", " Yes ") == 1
    assert fixed("relaxed_accuracy", "0.52", ["0.5", "x"]) == 1


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("NO", "no"),
        ("Yes.", "yes"),
        ("no\n", "no"),
        ("There isn't one", "no"),
        ("There isn’t one", "no"),
        ("I see yes and no", "unknown"),
        ("maybe", "unknown"),
        ("No, there is. Yes", "no"),
        ("The answer is yes", "yes"),
        ("know", "unknown"),
    ],
)
def test_pope_reads_words_in_fixed_mode(reply: str, expected: str) -> None:
    assert fixed("pope_parse", reply) == expected


def test_pope_metrics_in_fixed_mode_need_equal_lengths_and_leave_undefined_ratios_open() -> None:
    with pytest.raises(ValueError, match="zip"):
        fixed("pope_metrics", ["yes"], ["yes", "no"])
    found = fixed("pope_metrics", ["no", "no"], ["no", "no"])
    assert found["f1"] is None and found["precision"] is None and found["accuracy"] == 1
    assert fixed("pope_metrics", [], [])["accuracy"] is None


def test_published_yes_ratio_is_over_all_replies_even_those_cut_by_the_pairing() -> None:
    assert SCORERS["pope_metrics"](["yes", "no", "no"], ["yes", "no"])["yes_ratio"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B. At the beginning", "B"),
        ("The answer is B", "B"),
        ("Answer: B", "B"),
        ("at the beginning", "B"),
        ("I think it is in the middle of it", "C"),
        ("A man walks", ""),
        ("Because of it", ""),
        ("At the end or in the middle", ""),
        ("E", ""),
    ],
)
def test_first_label(reply: str, expected: str) -> None:
    assert first_label(reply, OPTIONS) == expected


def test_fixed_choice_is_not_fooled_by_options_that_contain_each_other() -> None:
    numbers, images = ["1", "2", "3", "10"], [f"image{i}" for i in range(1, 31)]
    for options, gold in ((numbers, "10"), (images, "image28")):
        inputs = {"pred_response": gold, "gt_response": gold, "choice_list": options}
        assert SCORERS["milebench_multichoice"](**inputs)["score"] == 0
        assert fixed("milebench_multichoice", **inputs)["score"] == 1


def test_an_option_with_an_escaped_character_never_wins_by_its_text_as_published() -> None:
    inputs = {"pred_response": "it costs $5", "gt_response": "$5", "choice_list": ["$5", "$7"]}
    assert SCORERS["milebench_multichoice"](**inputs)["extracted"] == ""
    assert fixed("milebench_multichoice", **inputs)["score"] in (0, 1)
    assert SCORERS["milebench_multichoice"](**(inputs | {"pred_response": "A"}))["score"] == 1


def test_labels_after_z() -> None:
    assert [label(i) for i in (0, 25, 26, 51, 52, 62)] == ["A", "Z", "AA", "AZ", "BA", "BK"]


@pytest.mark.parametrize(
    ("name", "gold", "reply", "published", "corrected"),
    [
        ("mmniah_choice", 1, "(B)", 0, 1),
        ("mmniah_choice", 1, "Answer: B", 0, 1),
        ("mmniah_choice", 1, "right", 1, 1),
        ("mmniah_choice", 1, "1", 1, 0),
        ("mmniah_counting", [1, 2], "The counts are [1, 2]", 0, 1),
        ("mmniah_counting", [1, 2], '["1", "2"]', 0, 1),
        ("mmniah_counting", [1, 2], "[1, 2, 5, 5]", 1, 0.5),
        ("mmniah_counting", [1, 2], "[true, 2]", 1, 0.5),
        ("mmniah_counting", [1, 2], "none", 0, 0),
        ("mmniah_text", "99.9%", "99.1%", 1, 0),
        ("mmniah_text", "the", "x", 1, 0),
        ("mmniah_text", "oak", "the oak tree", 1, 1),
        ("milebench_contains", None, None, 1, 0),
        ("milebench_needle", None, None, 0, 1),
    ],
)
def test_both_modes_side_by_side(name: str, gold: object, reply: object, published: float, corrected: float) -> None:
    inputs = (gold, reply)
    if name == "milebench_contains":
        inputs = ("Parisian", "paris")
    if name == "milebench_needle":
        inputs = ("in new york", "New York")
    assert (SCORERS[name](*inputs), fixed(name, *inputs)) == (published, corrected)


def test_word_match_takes_the_word_and_nothing_else() -> None:
    replies = ["7", " 7.", "(7)", "digit 7", "77", "seven", ""]
    assert [SCORERS["word_match"](r, "7") for r in replies] == [1, 1, 1, 0, 0, 0, 0]


def test_published_exceptions_keep_their_names() -> None:
    with pytest.raises(ZeroDivisionError):
        SCORERS["mmniah_counting"]([], "[]")
    with pytest.raises(ZeroDivisionError):
        SCORERS["pope_metrics"](["no"], ["yes"])
    with pytest.raises(AssertionError):
        SCORERS["vqa_accuracy"]("a", ["a"] * 9)
    with pytest.raises(AssertionError):
        SCORERS["milebench_multichoice"]("A", "z", ["x", "y"])
    with pytest.raises(AssertionError):
        SCORERS["milebench_rouge_l"]("x", "?")
    assert fixed("mmniah_counting", [], "[]") == 1 and fixed("vqa_accuracy", "a b", ["a b"]) == 1


def test_depths_fall_in_the_published_cells() -> None:
    assert list(cells([999, 1000, 4000, 64000, 1e9], [0.0, 0.6, 1.0, [0.2, 0.6], 0.999])) == [0, 7, 19, 57, 59]
    with pytest.raises(IndexError):
        cells([1000], [1.2])


def test_the_contraction_table_is_whole() -> None:
    table = contractions()
    assert len(table) == 114 and table["dont"] == "don't" and table["somebody'd"] == "somebodyd"
    assert all(key == key.lower() for key in table)


# slow reference implementations --------------------------------------------------------------------------------------


@given(st.text("abC É", max_size=12), st.text("abC É", max_size=12))
def test_anls_equals_the_table_method(prediction: str, answer: str) -> None:
    def clean(text: str) -> str:
        return " ".join(text.lower().split())

    size = max(len(prediction), len(answer))
    expected = 1 - table_distance(clean(prediction), clean(answer)) / size if size else 1.0
    assert anls(prediction, [answer]) == (expected if expected >= 0.5 else 0.0)


def test_rouge_picks_the_same_common_words_as_the_table_method() -> None:
    """Ties between equally long subsequences change the set of words: 1,000 pairs with many repeats."""
    rng = random.Random(0)
    ties = 0
    for _ in range(1000):
        x, y = ([rng.choice("abcdefg"[: rng.randint(2, 7)]) for _ in range(rng.randint(0, 60))] for _ in range(2))
        expected = set(table_words(x, y))
        assert lcs_words(x, y) == expected
        ties += expected != set(table_words(y, x))
    assert ties > 20, "the pairs never tied: the test shows nothing"


def test_rouge_cuts_sentences_at_periods() -> None:
    assert rouge_l("the cat.sat on mat", "the cat sat on mat") == pytest.approx(1, abs=1e-7)
    with pytest.raises(ValueError, match="without a sentence"):
        rouge_l("..", "x")
