"""What a trained checkpoint says of its V2PE strides."""

import pytest

from vlm.models.checkpoint.layout import read_layout
from vlm.train.run.loop import train


@pytest.mark.parametrize(
    ("strides", "choices", "default", "recorded"),
    [
        ("random", "[0.25,0.5,1,2,4]", 1.0, (0.25, 0.5, 1.0, 2.0, 4.0)),
        ("2", "[1,2]", 2.0, None),
        ("null", "[1,2]", None, None),
    ],
)
def test_the_exported_model_records_how_it_was_trained(strides, choices, default, recorded, recipe, tmp_path):
    model = train(recipe("steps=1", f"strides={strides}", f"stride_choices={choices}"), tmp_path / "run", quiet=True)
    spec = read_layout(model).spec
    assert (spec.strides, spec.stride_choices) == (default, recorded)
