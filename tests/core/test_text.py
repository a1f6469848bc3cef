"""Foreign text on a screen."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from vlm.core.text import printable


@given(st.text(st.characters(exclude_categories=[])))
def test_nothing_is_left_that_a_terminal_obeys_or_an_encoder_refuses(text):
    shown = printable(text, limit=50)
    shown.encode()
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_text_of_any_script_stays_as_it_is():
    assert printable("Größe 12 µm, 答案是B。 [red] 🙂") == "Größe 12 µm, 答案是B。 [red] 🙂"


def test_the_middle_of_a_long_text_is_left_out():
    assert printable("a" * 500 + "z", limit=9) == "aaaa…aaaz"
    assert printable(12345, limit=5) == "12345"
