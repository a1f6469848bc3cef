"""Pictures and videos of every kind become RGB, or an error that names the file."""

import gzip
import io
import os
import socket
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from support.videos import write_video
from vlm.core.errors import ConfigError, MediaError
from vlm.core.sample.media import frame_indices, image_size, load_image, load_video


@pytest.fixture
def clip(tmp_path):
    """A 20-frame, 10 fps video whose frame k has brightness 10 * k."""
    return write_video(tmp_path / "clip.mp4", range(0, 200, 10))


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


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "print.tiff")
    assert load_image(tmp_path / "print.tiff").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animated_picture_is_its_first_frame(suffix, tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    assert load_image(path).mode == "RGB"
    assert load_image(path).getcolors() == [(64, (255, 0, 0))]


def test_exif_rotation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "r.jpg", exif=exif)
    assert load_image(tmp_path / "r.jpg").size == image_size(tmp_path / "r.jpg") == (4, 2)


def huge_png(side: int) -> bytes:
    """A PNG file of a few bytes whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jpg", "no such file"),
        ("empty.jpg", r"is empty \(0 bytes\)"),
        ("text.jpg", "is not an image"),
        ("cut.png", "cannot be decoded"),
        ("cut.jpg", "cannot be decoded: image file is truncated"),
        ("flipped.png", "cannot be decoded"),
        ("folder.png", "is a folder"),
        ("bomb.png", "exceeds limit of 178956970 pixels"),
    ],
)
def test_broken_images_are_errors_that_name_the_file_and_the_fix(name, message, tmp_path):
    whole = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    whole.save(tmp_path / "whole.png")
    whole.save(tmp_path / "whole.jpg")
    png, jpg = ((tmp_path / f"whole.{suffix}").read_bytes() for suffix in ("png", "jpg"))
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"no image",
        "cut.png": png[:3000],
        "cut.jpg": jpg[: len(jpg) // 2],
        "flipped.png": png[:60] + bytes(byte ^ 255 for byte in png[60:90]) + png[90:],
        "bomb.png": huge_png(30_000),
    }
    if name in contents:
        (tmp_path / name).write_bytes(contents[name])
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(MediaError, match=message) as error:
        load_image(tmp_path / name)
    assert name in error.value.found and error.value.fix


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns about what it skips in a damaged TIFF
def test_random_damage_never_shows_a_traceback(tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    for suffix in ("png", "jpg", "gif", "webp", "tiff", "bmp"):
        picture.save(tmp_path / f"whole.{suffix}")
        whole, failed = (tmp_path / f"whole.{suffix}").read_bytes(), 0
        for _ in range(40):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole) // 2) : rng.integers(len(whole) // 2, len(whole))] = rng.bytes(9)
            (tmp_path / f"x.{suffix}").write_bytes(damaged)
            try:
                load_image(tmp_path / f"x.{suffix}")
            except MediaError as error:
                failed += f"x.{suffix}" in error.found
        assert failed > 10


@pytest.mark.parametrize("reader", ["decord", "av"])
def test_video_frames_are_the_chosen_ones_with_either_reader(clip, reader, monkeypatch):
    if reader == "av":
        monkeypatch.setitem(sys.modules, "decord", None)
    assert brightness(load_video(clip, 4)) == frame_indices(20, 10, 4) == [2, 7, 12, 16]
    assert brightness(load_video(clip, 2, (1.0, 1.5))) == frame_indices(20, 10, 2, (1.0, 1.5)) == [11, 13]


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.mp4", "no such file"),
        ("empty.mp4", "cannot be decoded"),
        ("text.mp4", "cannot be decoded"),
        ("cut.mp4", "cannot be decoded"),
        ("no-frames.avi", "has no frames"),
        ("no-frames.mp4", "has no frames"),
        ("no-frames.mkv", "has no frames"),
        ("empty-folder", "has no frames"),
        ("cut.gif", "cannot be decoded|is not an image"),
    ],
)
def test_broken_videos_are_errors_that_name_the_file_and_the_fix(name, message, tmp_path, clip):
    Image.new("RGB", (9, 9)).save(
        tmp_path / "whole.gif", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")]
    )
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"no video",
        "cut.mp4": clip.read_bytes()[:200],
        "cut.gif": (tmp_path / "whole.gif").read_bytes()[:30],
    }
    path = tmp_path / name
    if name in contents:
        path.write_bytes(contents[name])
    elif name == "empty-folder":
        path.mkdir()
    elif name.startswith("no-frames"):
        write_video(path, [])
    with pytest.raises(MediaError, match=message) as error:
        load_video(path, 4)
    assert name in error.value.found and error.value.fix


def test_impossible_requests_are_errors(clip):
    with pytest.raises(MediaError, match="starts outside"):
        load_video(clip, 4, (5.0, 6.0))
    with pytest.raises(ConfigError, match="0 frames"):
        load_video(clip, 0)


def test_damage_that_kills_a_reader_does_not_kill_the_process(tmp_path, clip):
    """decord trusts a number of frames and aborts for want of memory; PyAV crashes on a codec that nobody knows."""
    lie = bytearray(clip.read_bytes())
    at = lie.index(b"stts") + 12
    lie[at : at + 4] = struct.pack(">I", 0x7FFFFFFF)
    (tmp_path / "lie.mp4").write_bytes(lie)
    whole = write_video(tmp_path / "codec.mkv", [0]).read_bytes()
    assert b"V_MPEG4" in whole
    (tmp_path / "codec.mkv").write_bytes(whole.replace(b"V_MPEG4", b"V_NONE4"))
    code = """if True:
        import sys
        from vlm.core.errors import MediaError
        from vlm.core.sample.media import load_video
        for path in sys.argv[1:]:
            try:
                print(len(load_video(path, 3)))
            except MediaError as error:
                print(error.found)
    """
    command = [sys.executable, "-c", code, str(tmp_path / "lie.mp4"), str(tmp_path / "codec.mkv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("codec.mkv holds a video of an unknown codec")


def other_files() -> dict[str, tuple[bytes, str]]:
    """Files that are named like pictures and are none: content, and what the error calls it."""
    picture = io.BytesIO()
    Image.new("RGB", (9, 9)).save(picture, "PNG")
    return {
        "page.jpg": (b"\n<!DOCTYPE html><html>not found", "is a web page"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a Git LFS pointer"),
        "packed.jpg": (gzip.compress(picture.getvalue()), "is compressed with gzip"),
        "archive.png": (b"PK\x03\x04" + bytes(60), "is a zip archive"),
        "drawing.svg": (
            b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
            "is an SVG",
        ),
        "paper.png": (b"%PDF-1.7\n", "is a PDF"),
        "phone.heic": (struct.pack(">I4s4s", 24, b"ftyp", b"heic") + bytes(60), "is HEIC"),
        "zero.png": (huge_png(0), "is not an image"),
    }


@pytest.mark.parametrize("name", other_files())
def test_what_is_no_picture_is_called_what_it_is(name, tmp_path):
    content, message = other_files()[name]
    (tmp_path / name).write_bytes(content)
    for read in (load_image, image_size):
        with pytest.raises(MediaError, match=message) as error:
            read(tmp_path / name)
        assert name in error.value.found and error.value.fix


def test_postscript_starts_no_other_program(tmp_path, monkeypatch):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for name, content in (
        ("a.jpg", script),
        ("b.eps", b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, 9, 0, 0, 0, 0) + script),
    ):
        (tmp_path / name).write_bytes(content)
        for read in (load_image, lambda path: load_video(path, 2)):
            with pytest.raises(MediaError):
                read(tmp_path / name)
    assert not (tmp_path / "started").exists()


PLAYLISTS = {
    "local.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nOUTSIDE\n#EXT-X-ENDLIST\n",
    "file.mp4": "#EXTM3U\n#EXTINF:9,\nfile://OUTSIDE\n#EXT-X-ENDLIST\n",
    "key.mp4": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="http://SERVER/key"\n#EXTINF:9,\nhttp://SERVER/a.ts\n',
    "concat.m3u8": "#EXTM3U\n#EXTINF:9,\nconcat:http://SERVER/a|file://OUTSIDE\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\noption safe 0\nfile OUTSIDE\n",
    "list.mkv": "ffconcat version 1.0\nfile http://SERVER/c.ts\n",
    "dash.mpd": '<?xml version="1.0"?><MPD><Period><BaseURL>http://SERVER/d.mp4</BaseURL></Period></MPD>',
    "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 18998 RTP/AVP 96\n",
    "ref.mov": "[reference]\nRef1=http://SERVER/ref\n",
    "asx.wmv": '<ASX version="3.0"><ENTRY><REF HREF="http://SERVER/asx"/></ENTRY></ASX>',
    "blank.mp4": "\n \n#EXTM3U\n#EXTINF:9,\nfile://OUTSIDE\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("reader", ["decord", "av"])
def test_a_playlist_opens_no_file_and_no_connection(name, reader, tmp_path, clip, monkeypatch):
    if reader == "av":
        monkeypatch.setitem(sys.modules, "decord", None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / name).write_text(PLAYLISTS[name].replace("OUTSIDE", str(clip)).replace("SERVER", address))
        with pytest.raises(MediaError, match=r"is a playlist|cannot be decoded"):
            load_video(tmp_path / name, 2)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize("texts", [1, 80])
def test_a_png_with_more_text_than_pillow_reads_is_a_good_picture(texts, after_pixels, tmp_path):
    about = PngInfo()
    for k in range(texts):
        about.add_text(f"k{k}", "x" * (2_000_000 if texts == 1 else 900_000), zip=True)
    Image.new("RGB", (9, 7), "red").save(tmp_path / "a.png", pnginfo=about)
    if after_pixels:
        raw = (tmp_path / "a.png").read_bytes()
        first, last = raw.index(b"zTXt") - 4, raw.index(b"IDAT") - 4
        (tmp_path / "a.png").write_bytes(raw[:first] + raw[last:-12] + raw[first:last] + raw[-12:])
    assert image_size(tmp_path / "a.png") == (9, 7)
    assert load_image(tmp_path / "a.png").getcolors() == [(63, (255, 0, 0))]


def test_a_scan_of_100_megapixels_is_read_without_a_warning(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "scan.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(tmp_path / "scan.png") == (10_000, 10_000)
