import av
import numpy as np
import pytest
from PIL import Image

from vlm.core import media
from vlm.core.errors import MediaError
from vlm.core.media import frame_indices, image_size, load_image, load_video


@pytest.fixture
def clip(tmp_path):
    """A 20-frame, 10 fps video whose frame k has brightness 10 * k."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for k in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * k, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def brightness(frames):
    return [round(np.asarray(frame).mean() / 10) for frame in frames]


@pytest.mark.parametrize(
    ("n", "segments", "bound", "expected"),
    [
        (300, 8, None, [18, 55, 93, 130, 168, 205, 242, 280]),
        (300, 4, (2, 5), [71, 93, 116, 139]),
        (5, 8, None, [0, 0, 1, 2, 2, 2, 3, 4]),
    ],
)
def test_frame_indices_of_the_fact_sheet(n, segments, bound, expected):
    assert frame_indices(n, 30.0, segments, bound) == expected


def test_images_become_rgb_as_published(tmp_path):
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(tmp_path / "p.png")
    assert load_image(tmp_path / "p.png").getpixel((0, 0)) == (200, 100, 50)
    Image.new("LA", (3, 2), (7, 0)).save(tmp_path / "la.png")
    assert load_image(tmp_path / "la.png").getpixel((0, 0)) == (7, 7, 7)
    assert image_size(tmp_path / "la.png") == (3, 2)


def test_sixteen_bit_values_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 0x12, 255]


def test_exif_rotation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "r.jpg", exif=exif)
    assert load_image(tmp_path / "r.jpg").size == image_size(tmp_path / "r.jpg") == (4, 2)


def test_broken_images_are_errors_that_name_the_file(tmp_path):
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.png", "text.jpg", "missing.jpg"):
        with pytest.raises(MediaError, match=name):
            load_image(tmp_path / name)


@pytest.mark.parametrize("reader", ["decord", "av"])
def test_video_frames_are_the_chosen_ones_with_either_reader(clip, reader):
    load = load_video if reader == "decord" else media._with_av
    assert brightness(load(clip, 4, None)) == frame_indices(20, 10, 4) == [2, 7, 12, 16]
    assert brightness(load(clip, 2, (1.0, 1.5))) == frame_indices(20, 10, 2, (1.0, 1.5)) == [11, 13]


def test_gif_and_folder_give_the_same_frames_as_a_video(tmp_path):
    frames = [Image.new("RGB", (8, 8), (10 * k,) * 3) for k in range(12)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    folder = tmp_path / "frames"
    folder.mkdir()
    for k, frame in enumerate(frames):
        frame.save(folder / f"{k:03}.png")
    expected = frame_indices(12, 10, 4)
    assert brightness(load_video(tmp_path / "a.gif", 4)) == brightness(load_video(folder, 4)) == expected
    assert brightness(load_video(folder, 2, (1, 3))) == frame_indices(12, 3, 2, (1, 3))


def test_broken_videos_are_errors_that_name_the_file(tmp_path, clip):
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    for name in ("broken.mp4", "empty", "missing.mp4"):
        with pytest.raises(MediaError, match=name):
            load_video(tmp_path / name, 4)
    with pytest.raises(MediaError, match="starts outside"):
        load_video(clip, 4, (5.0, 6.0))
