"""`--stride`: positions of a tile, or the paper's increment of a token."""

from fractions import Fraction

import pytest

from vlm.cli.strides import per_tile, read_stride, read_strides
from vlm.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64.0),
        ("1/64", Fraction(1, 64)),
        (" 1/4 ", Fraction(1, 4)),
        ("0.25", 0.25),
        ("None", None),
        (None, "model"),
    ],
)
def test_a_stride_is_a_number_an_increment_or_none(text, value):
    assert read_stride(text) == value and type(read_stride(text)) is type(value)


@pytest.mark.parametrize("text", ["", "0", "-1", "1/0", "nan", "inf", "1/x", "0/4", "-1/4", "1/4/4", "64,"])
def test_other_text_is_refused_with_what_is_expected(text):
    with pytest.raises(ConfigError, match=r"positions of a tile above 0, an increment such as 1/4, or `none`"):
        read_strides(text)


def test_increments_of_the_paper_are_the_strides_of_the_scripts():
    sweep = read_strides("1,1/2,1/4,1/16,1/64,1/256,none")
    assert [per_tile(value, 256) for value in sweep] == [1, 128, 64, 16, 4, 1, None]
    assert per_tile(Fraction(1, 4), 16) == 4 and per_tile("model", None) == "model"
    with pytest.raises(ConfigError, match="tokens of a tile are not known"):
        per_tile(Fraction(1, 4), None)
