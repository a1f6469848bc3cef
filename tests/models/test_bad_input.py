"""Bad input to a conversation: an error that names the file and leaves no trace, or a documented correct result."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vlm.core.errors import CheckpointError, ConfigError, DataError, MediaError, VlmError
from vlm.core.sample.chat import user_message
from vlm.core.sample.encode import picture_part
from vlm.core.sample.records import image
from vlm.models.answers import encode_unique
from vlm.models.session import ChatSession


@pytest.fixture
def chat(preset, checkpoint):
    return ChatSession(checkpoint(preset))


@pytest.fixture
def files(tmp_path):
    """A folder of bad files beside good.png."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:3000])
    (tmp_path / "corrupt.png").write_bytes(whole[:60] + bytes(byte ^ 255 for byte in whole[60:90]) + whole[90:])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder").mkdir()
    (tmp_path / "corrupt.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    with av.open(str(tmp_path / "no-frames.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "cut.png",
        "corrupt.png",
        "empty.png",
        "text.png",
        "folder",
        "gone.png",
        "corrupt.mp4",
        "no-frames.mp4",
        "gone.mp4",
    ],
)
def test_a_broken_file_is_named_and_the_conversation_goes_on(name, chat, files):
    chat.ask("Why?", max_new_tokens=2)
    before = list(chat.history)
    media = {"videos" if name.endswith("mp4") else "images": [files / name]}
    with pytest.raises(MediaError) as error:
        chat.stream("What?", **media)  # at once, not when the first piece is read
    assert name in error.value.found and error.value.fix
    assert chat.history == before
    with pytest.raises(MediaError, match=name):
        chat.ask_batch(["A?", "B?"], **{key: [value, []] for key, value in media.items()})
    assert chat.ask("What?", images=[files / "good.png"], max_new_tokens=2)
    assert len(chat.history) == len(before) + 2


@pytest.mark.parametrize(("width", "height"), [(50_000, 10), (10, 5_000), (1, 1)])
def test_a_picture_of_any_shape_is_answered(width, height, chat, tmp_path):
    Image.new("RGB", (width, height), "green").save(tmp_path / "odd.png")
    prompt = chat.processor.encode(chat.messages("What?", [tmp_path / "odd.png"]))
    assert prompt.pixels.shape[1:] == (chat.model.image_size, chat.model.image_size, 3)
    assert prompt.n_tiles == chat.processor.spec.image_rule.count(width, height) <= 5
    assert isinstance(chat.ask("What?", images=[tmp_path / "odd.png"], max_new_tokens=2), str)


@pytest.mark.parametrize("kind", ["CMYK", "16 bit", "palette", "grey + alpha", "animated"])
def test_pictures_of_every_kind_reach_the_model_as_rgb(kind, chat, tmp_path):
    grey = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    rgb = Image.fromarray(grey).convert("RGB")
    path = tmp_path / ("x.gif" if kind == "animated" else "x.tiff" if kind == "CMYK" else "x.png")
    if kind == "CMYK":
        rgb.convert("CMYK").save(path)
    elif kind == "16 bit":
        Image.fromarray(grey.astype(np.uint16) << 8).save(path)
    elif kind == "palette":
        rgb.quantize(64).save(path)
    elif kind == "grey + alpha":
        Image.fromarray(grey).convert("LA").save(path)
    else:
        rgb.save(path, save_all=True, append_images=[Image.new("RGB", (64, 64), "red")])
    got = chat.processor.encode(chat.messages("What?", [path])).pixels
    np.testing.assert_allclose(got, chat.processor.spec.image_rule.apply(rgb), atol=4)


def test_placeholders_that_differ_from_images_are_refused_with_both_counts(chat, files):
    with pytest.raises(DataError, match="question: 2 <image> placeholders but 1 media"):
        user_message("<image> and <image>?", [image(files / "good.png")])
    two = [picture_part(Image.new("RGB", (60, 60), color)) for color in ("red", "blue")]
    encoded = chat.processor.encode([user_message("Compare.", two)])
    ids = torch.from_numpy(encoded.input_ids)[None]
    features = encode_unique(chat.model, chat.processor, [encoded], 16)
    slots = 2 * chat.processor.tokens_per_tile
    with pytest.raises(DataError, match=f"{slots} image placeholders in the ids but {slots // 2} image features"):
        chat.model.generate(ids, features=features[:1])
    with pytest.raises(DataError, match="1 strides for 2 images"):
        chat.processor.encode([user_message("Compare.", two)], strides=[2.0])


@pytest.mark.parametrize("question", ["", "   ", "\n\t"])
def test_an_empty_question_is_refused_with_or_without_a_picture(question, chat, files):
    for images in ([], [files / "good.png"]):
        with pytest.raises(ConfigError, match="question is empty"):
            chat.ask(question, images=images)


@pytest.mark.parametrize("settings", [{"max_tiles": 0}, {"frames": 0}, {"strides": "sixty"}, {"dtype": "int8"}])
def test_impossible_settings_are_vlm_errors(settings, preset, checkpoint):
    with pytest.raises(VlmError) as error:
        ChatSession(checkpoint(preset), **settings)
    assert error.value.exit_code == 2 and next(iter(settings)).rstrip("s") in error.value.found


def test_a_missing_tokenizer_is_reported_before_the_weights_are_read(preset, checkpoint, tmp_path):
    source = checkpoint(preset)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=f"no tokenizer in {tmp_path}") as error:
        ChatSession(tmp_path)
    assert error.value.fix
