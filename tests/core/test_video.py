"""The frames of a video are those that decoding it from its start shows, whatever container, codec and decoder."""

import struct
import sys

import av
import numpy as np
import pytest

from support.videos import write_video
from vlm.core.errors import MediaError
from vlm.core.sample import video
from vlm.core.sample.media import frame_indices, load_video

N = 48
PICTURES = np.random.default_rng(0).integers(0, 256, (N, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
"""What frame k shows: squares of random colors, which every codec keeps apart."""

X264 = {"preset": "veryfast", "qp": "10"}
FILES = {
    "h264-closed.mp4": ("libx264", {**X264, "g": "12", "bf": "3"}, {}),
    "h264-open.mp4": ("libx264", {**X264, "g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}, {}),
    "h264-refresh.mov": ("libx264", {**X264, "g": "6", "bf": "0", "x264-params": "intra-refresh=1"}, {}),
    "h264-pieces.mp4": ("libx264", {**X264, "g": "12"}, {"movflags": "frag_keyframe+empty_moov"}),
    "h264-b.avi": ("libx264", {**X264, "g": "12", "bf": "3"}, {}),
    "h264-b.ts": ("libx264", {**X264, "g": "12", "bf": "3"}, {}),
    "h264-b.mkv": ("libx264", {**X264, "g": "12", "bf": "3"}, {}),
    "h264-b.flv": ("libx264", {**X264, "g": "12", "bf": "3"}, {}),
    "hevc-open.mkv": ("libx265", {"x265-params": "keyint=12:open-gop=1:bframes=3:qp=10:log-level=none"}, {}),
    "hevc.mp4": ("libx265", {"x265-params": "keyint=12:qp=10:log-level=none"}, {}),
    "vp9.webm": ("libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}, {}),
    "vp8.webm": ("libvpx", {"g": "12", "deadline": "realtime", "auto-alt-ref": "1"}, {}),
    # not SVT-AV1: its threads take real-time priority where they may, and starve everything else
    "av1.mp4": ("libaom-av1", {"cpu-used": "8", "g": "12", "crf": "10"}, {}),
    "mpeg4-b.avi": ("mpeg4", {"g": "12", "bf": "2"}, {}),
    "mpeg4.mp4": ("mpeg4", {"g": "12"}, {}),
    "mpeg2-b.mpg": ("mpeg2video", {"g": "12", "bf": "2"}, {}),
    "mpeg2-b.ts": ("mpeg2video", {"g": "12", "bf": "2"}, {}),
    "wmv2.wmv": ("wmv2", {"g": "12"}, {}),
    "mjpeg.mov": ("mjpeg", {}, {}),
}


def make(tmp_path, name, pictures=PICTURES, *, container=None, times=None):
    codec, options, usual = FILES[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    how = {"codec": codec, "options": options, "container": usual if container is None else container}
    return write_video(tmp_path / name, pictures, (64, 48), times=times, **how)


def numbers(frames):
    """The number of each frame: that of the picture it is most like."""
    shown = [np.asarray(frame).astype(int) for frame in frames]
    return [int(np.abs(PICTURES.astype(int) - frame).mean((1, 2, 3)).argmin()) for frame in shown]


@pytest.fixture(params=["with decord", "without decord"])
def reader(request, monkeypatch):
    if request.param == "without decord":
        monkeypatch.setitem(sys.modules, "decord", None)
    return request.param


@pytest.fixture
def decord_reads(monkeypatch):
    """The names of the files whose frames decord returned."""
    names, by_decord = [], video._by_decord

    def spy(path, index, chosen):
        frames = by_decord(path, index, chosen)
        if frames:
            names.append(path.name)
        return frames

    monkeypatch.setattr(video, "_by_decord", spy)
    return names


@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_of_sequential_decoding(name, tmp_path, reader):
    path = make(tmp_path, name)
    for segments in (8, 5, N):
        assert numbers(load_video(path, segments)) == frame_indices(N, 10, segments)
    assert numbers(load_video(path, 4, (1.0, 3.0))) == frame_indices(N, 10, 4, (1.0, 3.0))


def test_decord_reads_only_where_its_frames_are_proved(tmp_path, decord_reads):
    pytest.importorskip("decord")
    for name in ("h264-closed.mp4", "h264-open.mp4", "h264-refresh.mov", "h264-b.avi", "h264-b.ts", "hevc.mp4"):
        load_video(make(tmp_path, name), 8)
    assert decord_reads == ["h264-closed.mp4"]


@pytest.mark.parametrize("name", ["h264-closed.mp4", "h264-b.mkv", "av1.mp4"])
def test_frames_at_a_variable_rate_are_counted_in_the_order_of_their_times(name, tmp_path, reader):
    times = np.cumsum([0, *([40, 300, 10, 150] * N)[: N - 1]]).tolist()
    path = make(tmp_path, name, times=times)
    assert numbers(load_video(path, 8)) == frame_indices(N, 1.0, 8)
    if not name.endswith("mkv"):  # the mean rate that the header tells turns seconds into frames, as published
        fps = N / ((times[-1] + times[-1] - times[-2]) / 1000)
        found = numbers(load_video(path, 4, (1.0, 4.0)))
        assert np.abs(np.array(found) - frame_indices(N, fps, 4, (1.0, 4.0))).max() <= 1


def test_an_edit_list_shows_its_part_alone(tmp_path, reader):
    path = make(tmp_path, "h264-closed.mp4")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"elst") + 12  # behind the name, version and number of edits
    start = struct.unpack_from(">i", raw, at + 4)[0]
    struct.pack_into(">Ii", raw, at, 2000, start + 17 * 1024)  # two seconds from frame 17 on
    path.write_bytes(raw)
    with av.open(str(path)) as container:
        n = sum(1 for _ in container.decode(video=0))
    assert 19 <= n <= 21
    assert numbers(load_video(path, 8)) == [17 + place for place in frame_indices(n, 10, 8)]


TURN = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
"""Degrees clockwise -> the matrix in the header of an MP4 track."""


def turn(path, degrees):
    """Write into an MP4 that its track is to be turned clockwise."""
    raw = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in TURN[degrees])
    struct.pack_into(">9i", raw, raw.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(raw)


@pytest.mark.parametrize("degrees", TURN)
@pytest.mark.parametrize("name", ["h264-closed.mp4", "hevc.mp4", "av1.mp4", "mpeg4.mp4"])
def test_a_turned_video_is_shown_upright(name, degrees, tmp_path, reader):
    dark_left = np.full((8, 48, 64, 3), 200, np.uint8)
    dark_left[:, :, :32] = 0
    path = make(tmp_path, name, dark_left)
    turn(path, degrees)
    picture = load_video(path, 1)[0]
    assert picture.size == ((64, 48) if degrees == 180 else (48, 64))
    gray = np.asarray(picture.convert("L")).astype(int)
    halves = {90: (gray[:32], gray[32:]), 180: (gray[:, 32:], gray[:, :32]), 270: (gray[32:], gray[:32])}
    dark, bright = halves[degrees]
    assert dark.mean() < 20 < 80 < bright.mean()


@pytest.mark.parametrize("degrees", TURN)
def test_a_turned_square_is_shown_upright(degrees, tmp_path, reader):
    top = np.full((8, 64, 64, 3), 200, np.uint8)
    top[:, :32] = 0
    options = FILES["h264-closed.mp4"][1]
    path = write_video(tmp_path / "square.mp4", top, (64, 64), codec="libx264", options=options)
    turn(path, degrees)
    gray = np.asarray(load_video(path, 1)[0].convert("L"))
    dark = {90: gray[:, 32:], 180: gray[32:], 270: gray[:, :32]}[degrees]
    assert dark.mean() < 20 < 80 < gray.mean()


@pytest.mark.parametrize("params", ["colormatrix=bt709:range=tv", "colormatrix=smpte170m", "range=pc"])
def test_colors_are_those_that_the_file_declares_with_either_reader(params, tmp_path, monkeypatch, decord_reads):
    pytest.importorskip("decord")
    options = {**X264, "x264-params": params}
    path = write_video(tmp_path / "colors.mp4", PICTURES[:6], (64, 48), codec="libx264", options=options)
    by_decord = [np.asarray(frame) for frame in load_video(path, 6)]
    assert decord_reads == ["colors.mp4"]
    monkeypatch.setitem(sys.modules, "decord", None)
    for one, other in zip(by_decord, load_video(path, 6), strict=True):
        assert np.array_equal(one, np.asarray(other))


@pytest.mark.parametrize("share", [0.6, 0.9])
@pytest.mark.parametrize(
    ("name", "container"),
    [
        ("h264-closed.mp4", {"movflags": "faststart"}),
        ("mpeg4-b.avi", {}),
        ("h264-b.mkv", {}),
        ("vp9.webm", {}),
        ("h264-b.flv", {}),
    ],
)
def test_a_file_that_was_cut_short_is_an_error_with_both_counts(name, container, share, tmp_path, reader):
    path = make(tmp_path, name, container=container)
    assert len(load_video(path, 8)) == 8
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(MediaError, match=r"holds \d+ frames of about \d+ that its header|cannot be decoded") as error:
        load_video(path, 8)
    if share == 0.6:
        found, announced = (int(word) for word in error.value.found.split() if word.isdigit())
        assert 0.25 * N < found < 0.9 * N
        assert abs(announced - N) <= 4
        assert name in error.value.found and error.value.fix


def test_a_frame_larger_than_a_picture_may_be_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "LARGEST", 64 * 48 - 1)
    with pytest.raises(MediaError, match="64 x 48 exceed limit of 3071 pixels"):
        load_video(make(tmp_path, "mpeg4.mp4"), 4)
