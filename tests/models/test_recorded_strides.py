"""V2PE is never off in silence: a checkpoint says how it was trained, or is refused."""

import json
import shutil
from pathlib import Path

import pytest

from vlm.core.errors import CheckpointError
from vlm.core.positions import STRIDES, default_stride
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import save_model
from vlm.models.processor import load_processor

RANDOM = {"strides": 1.0, "stride_choices": tuple(s / 64 for s in STRIDES)}


@pytest.fixture
def published(golden_data: Path, tmp_path: Path):
    """`published("name", key=value)`: a copy of the published miniature in a folder of that name, with other keys."""

    def make(name: str, **keys: object) -> Path:
        folder = tmp_path / "released" / name
        shutil.copytree(golden_data / "internvl2-v2pe-tiny", folder, ignore=shutil.ignore_patterns("cases*"))
        file = folder / "config.json"
        config = json.loads(file.read_text())
        config = {k: v for k, v in {**config, **keys}.items() if v != "absent"}
        file.write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize(
    ("choices", "tokens", "stride"),
    [
        (STRIDES, 256, 64),
        (STRIDES, 64, 16),
        (STRIDES, 4, 1),
        ((0.5, 1, 2), 4, 1),
        ((256,), 256, 256),
        ((1, 2), 256, 2),
        ((8, 256), 256, 256),
    ],
)
def test_the_default_after_random_strides_is_nearest_to_the_published_evaluation(choices, tokens, stride):
    assert default_stride(choices, tokens) == stride


@pytest.mark.parametrize("version", ["v2pe_rnd", "v2pe_fix", "v4", "v6"])
@pytest.mark.parametrize("stride", [None, "absent"])
def test_a_v2pe_configuration_without_a_stride_is_refused_and_the_fix_mends_it(version, stride, published):
    folder = published("mine", rope_pos_id_version=version, rope_pos_id_stride=stride)
    spec = read_layout(folder).spec
    assert spec.strides is None and spec.language.rope_scaling is None
    with pytest.raises(CheckpointError, match="V2PE positions, without a stride") as error:
        spec.check_stride()
    assert '"rope_pos_id_stride": 64' in str(error.value.fix)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rope_pos_id_stride": 64}))
    spec = read_layout(folder).spec
    assert spec.strides == 64 and spec.language.rope_scaling is None
    assert spec.stride_choices == (tuple(map(float, STRIDES)) if version == "v2pe_rnd" else None)


@pytest.mark.parametrize("name", ["V2PE-32K", "V2PE-256K"])
@pytest.mark.parametrize("version", ["absent", "default", "v2pe_rnd", "v4"])
def test_the_released_checkpoints_are_known_to_be_trained_with_random_strides(name, version, published):
    spec = read_layout(published(name, rope_pos_id_version=version, rope_pos_id_stride="absent")).spec
    assert spec.stride_choices == STRIDES
    assert spec.strides == default_stride(STRIDES, spec.tokens_per_tile)
    assert spec.language.rope_scaling is None


def test_a_stride_of_a_released_configuration_stays(published):
    spec = read_layout(published("V2PE-32K", rope_pos_id_version="v2pe_rnd", rope_pos_id_stride=16)).spec
    assert (spec.strides, spec.stride_choices) == (16, STRIDES)


def test_another_checkpoint_without_v2pe_counts_plainly(published):
    for version in ("default", "absent", None):
        spec = read_layout(published(f"x-{version}", rope_pos_id_version=version)).spec
        assert (spec.strides, spec.stride_choices) == (None, None)


@pytest.mark.parametrize("to", ["vlm", "internvl", "hf", "llava"])
def test_what_training_drew_from_survives_each_layout(to, tiny, tmp_path):
    model = tiny("tiny-convllava" if to == "llava" else "tiny-internvl2")
    model.spec = model.spec.model_copy(update=RANDOM)
    save_model(model, tmp_path / "ours")
    out = convert(tmp_path / "ours", to, tmp_path / "theirs", allow=["strides"] if to in ("hf", "llava") else ())
    back = convert(out, "vlm", tmp_path / "back")
    for folder in (tmp_path / "ours", out, back):
        spec = read_layout(folder).spec
        assert (spec.strides, spec.stride_choices) == (RANDOM["strides"], RANDOM["stride_choices"])


def test_a_plain_model_converted_into_a_folder_with_a_released_name_stays_plain(tiny, tmp_path):
    save_model(tiny(), tmp_path / "ours")
    out = convert(tmp_path / "ours", "internvl", tmp_path / "V2PE-32K")
    assert read_layout(out).spec == tiny().spec


def test_our_own_layout_needs_the_default_too(tiny, tmp_path):
    model = tiny()
    model.spec = model.spec.model_copy(update={"stride_choices": (1.0, 2.0)})
    save_model(model, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="without a stride"):
        read_layout(tmp_path / "ours").spec.check_stride()


def test_the_recorded_default_is_what_a_prompt_gets(checkpoint, tmp_path):
    folder = convert(checkpoint("tiny-internvl2"), "internvl", tmp_path / "V2PE-32K")
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), "rope_pos_id_version": "v2pe_rnd", "rope_pos_id_stride": None}
    file.write_text(json.dumps({key: value for key, value in config.items() if key != "vlm"}))
    processor = load_processor(folder)
    assert processor.resolve_strides("model") == default_stride(STRIDES, processor.tokens_per_tile)
