"""Files, folders, globs, URLs and parts of videos on the command line of `vlm chat` and `vlm infer`."""

import http.server
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from vlm.cli.commands.chat import media_of, split_words
from vlm.cli.inputs import is_glob, media_files, read_clip
from vlm.core.errors import ConfigError, FetchError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", "scans/2.jpg", "scans/deep/1.PNG", "scans/.hidden/x.png", "scans/film.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "scans" / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.fixture
def web() -> Iterator[str]:
    """A server of one picture."""
    out = BytesIO()
    Image.new("RGB", (4, 4), "red").save(out, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.path.startswith("/red.png")
            self.send_response(200 if good else 404)
            self.send_header("Content-Length", str(len(out.getvalue()) if good else 0))
            self.end_headers()
            self.wfile.write(out.getvalue() if good else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def named(*words: str) -> list[str]:
    return [path.as_posix() for path in media_files(words)]


def test_folders_and_globs_give_their_pictures_and_videos_by_name(here: Path) -> None:
    assert named("*.png") == ["a.png", "b.png"]
    assert named("b.png", "scans") == ["b.png", "scans/2.jpg", "scans/deep/1.PNG", "scans/film.mp4"]
    assert named("scans/**/*.PNG") == ["scans/deep/1.PNG"]
    assert named("scans/*") == ["scans/2.jpg", "scans/film.mp4"]
    assert named(str(here / "?.png")) == [str(here / "a.png"), str(here / "b.png")]
    (here / "odd[1].png").write_bytes(b"x")
    assert named("odd[1].png") == ["odd[1].png"]  # a file of that name is no pattern


@pytest.mark.parametrize("word", ["empty", "*.gif", "gone.png", "gone/", "a/" * 3000, "nul\0.png"])
def test_what_names_no_picture_is_an_error(word: str) -> None:
    with pytest.raises(ConfigError, match=r"no (picture or video|such file)"):
        media_files([word])


def test_the_last_word_is_the_question_unless_it_names_files(here: Path) -> None:
    assert split_words(["*.png"]) == ([Path("a.png"), Path("b.png")], None)
    assert split_words(["scans", "What is *this*?"])[1] == "What is *this*?"
    assert split_words(["What is it? " * 100]) == ([], "What is it? " * 100)  # longer than any name of a file
    assert not is_glob("Is [this] a cat?")
    with pytest.raises(ConfigError, match="add --allow-urls"):
        split_words(["http://x.invalid/a"])


def test_a_url_is_fetched_once_and_only_when_it_is_allowed(here: Path, web: str) -> None:
    with pytest.raises(ConfigError, match="--allow-urls"):
        media_files([f"{web}/red.png"])
    (path,) = media_files([f"{web}/red.png?size=4"], allow_urls=True)
    assert path.suffix == ".png" and Image.open(path).getpixel((0, 0)) == (255, 0, 0)
    assert path.is_relative_to(here / "home")
    before = path.stat().st_mtime_ns
    assert media_files([f"{web}/red.png?size=4"], allow_urls=True) == [path] and path.stat().st_mtime_ns == before
    with pytest.raises(FetchError, match="404"):
        media_files([f"{web}/gone.png"], allow_urls=True)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("10-25", (10, 25)), ("1:10-1:25", (70, 85)), ("1:00:05-1:00:10.5", (3605, 3610.5)), ("0s-2.5s", (0, 2.5))],
)
def test_a_clip_is_read_in_seconds_minutes_and_hours(said: str, seconds: tuple[float, float]) -> None:
    assert read_clip(said) == seconds


@pytest.mark.parametrize("said", ["", "10", "25-10", "10-10", "a-b", "-5-10", "1:2:3:4-5", "1e999-2", "0-99999999999"])
def test_a_clip_that_is_none_is_an_error(said: str) -> None:
    with pytest.raises(ConfigError, match="a clip"):
        read_clip(said)


def test_a_clip_needs_one_video() -> None:
    images, videos = media_of([Path("a.png"), Path("scans/film.mp4")], "1:10-1:25")
    assert images == [Path("a.png")] and videos[0]["clip"] == (70, 85)
    for files in ([Path("a.png")], [Path("1.mp4"), Path("2.mp4")]):
        with pytest.raises(ConfigError, match="--clip with"):
            media_of(files, "10-25")
