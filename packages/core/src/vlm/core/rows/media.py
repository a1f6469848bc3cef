"""What a row holds as a picture or video: a path, an address, a data URL, base64, bytes; read, and put into a folder.

store = MediaStore(out, MediaRoot(folder), urls=False)
name = store.place("data:image/png;base64,iVBORw0…", "image")     # 'images/5d2c….png'
"""

import base64
import binascii
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import httpx

from vlm.core.errors import DataError, MediaError, VlmError
from vlm.core.home import home, new_file, write_atomic
from vlm.core.media_root import MediaRoot
from vlm.core.net import TooLarge, exchange, network_fix, open_client, read_body, reason_of
from vlm.core.paths import exists
from vlm.core.rows.forms import Unfit
from vlm.core.sample.fields import PICTURES, SHORTEST, named, no_path
from vlm.core.sample.media import IMAGE_SUFFIXES, image_size, opened_image
from vlm.core.text import printable, shown

MOST_BYTES = 200_000_000
"""Bytes of one file at most that is given inside of a row or fetched."""
SECONDS = 60.0
"""Longest wait for one address."""
REDIRECTS = 5
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "MPO": ".jpg"}
VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v")
Medium = Literal["image", "video"]


@dataclass(frozen=True)
class MediaStore:
    """Read media of rows, and put them into `out`/images or `out`/videos under the digest of their content.

    Attributes:
        out: Folder that receives them.
        gate: Where paths start, and what they must not leave.
        urls: Fetch addresses (http, https); without, one is an error.
    """

    out: Path
    gate: MediaRoot
    urls: bool = False

    def content(self, value: Any, key: Medium) -> Path | bytes:
        """Return the file or the bytes that a row names. Raises Unfit where there is neither."""
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if not isinstance(value, str):
            raise Unfit("path", f"`{key}` is {named(value)}, expected a path, an address or bytes")
        if value.startswith("data:"):
            return _of_data(value, key)
        if value.startswith(("http://", "https://")):
            if not self.urls:
                raise Unfit(
                    "url", f"`{key}` is an address, which is fetched only with --allow-urls: {printable(value, 90)}"
                )
            return fetch_medium(value, key)
        if value.startswith("file://"):
            value = unquote(urlsplit(value).path)
        if len(value) > SHORTEST and value.startswith(PICTURES):
            return _of_base64(value, key)
        if why := no_path(value) or self.gate.refusal(value):
            raise Unfit("path", f"`{key}` {why}")
        path: Path = self.gate.folder / value
        if not exists(path) and "\\" in value and exists(self.gate.folder / value.replace("\\", "/")):
            value = value.replace("\\", "/")
            if why := self.gate.refusal(value):
                raise Unfit("path", f"`{key}` {why}")
            path = self.gate.folder / value
        if not exists(path):
            raise Unfit("missing file", f"`{key}`: no file {shown(str(path))}")
        return path

    def size(self, value: Any, key: Medium) -> tuple[int, int] | None:
        """Return width and height of an image; None for a video. Raises Unfit where it cannot be read."""
        content = self.content(value, key)
        if key == "video":
            return None
        try:
            if isinstance(content, Path):
                return image_size(content)
            with opened_image(content, "the bytes") as picture:
                width, height = picture.size
                return width, height
        except MediaError as error:
            raise Unfit("media", f"`{key}`: {printable(error.found)}") from error

    def place(self, value: Any, key: Medium) -> str:
        """Put a file where the records expect it; return its path below `out`. The same content is there once.

        Raises:
            Unfit: It is missing, must not be read, or is no picture.
        """
        content = self.content(value, key)
        suffix = self._suffix(content, key)
        try:
            digest = _digest(content)
            target = self.out / f"{key}s" / digest[:2] / f"{digest[2:32]}{suffix}"
            if not target.exists():
                _put(content, target)
        except OSError as error:
            if not isinstance(content, Path) or error.filename != str(content):
                raise
            raise Unfit("missing file", f"`{key}`: {shown(str(content))} cannot be read: {error.strerror}") from error
        return str(target.relative_to(self.out))

    def _suffix(self, content: Path | bytes, key: Medium) -> str:
        """Return the suffix of a file; of a picture by what it is. Raises Unfit where it is none."""
        if key == "video":
            if isinstance(content, Path) and content.suffix.lower() in VIDEOS:
                return content.suffix.lower()
            raise Unfit("media", f"`{key}`: expected a file that ends in {', '.join(VIDEOS)}")
        try:
            with opened_image(content, "the bytes" if isinstance(content, bytes) else "") as picture:
                format = str(picture.format)
                picture.load()  # a picture that training would drop is named here
        except MediaError as error:
            raise Unfit("media", f"`{key}`: {printable(error.found)}") from error
        except DataError as error:
            raise Unfit("path", f"`{key}`: {printable(error.found)}") from error
        own = content.suffix.lower() if isinstance(content, Path) else ""
        return SUFFIX.get(format) or (own if own in IMAGE_SUFFIXES else f".{format.lower()}")


def _digest(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(content: Path | bytes, target: Path) -> None:
    """Write a file in one piece; one of the same disk is linked, so that it takes no room."""
    if isinstance(content, bytes):
        return write_atomic(target, content)
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_file(target, flush=False) as temporary:
        try:
            os.link(content.resolve(), temporary)
        except OSError:
            shutil.copyfile(content, temporary)
    return None


def _of_data(value: str, key: str) -> bytes:
    head, comma, body = value.partition(",")
    if not comma:
        raise Unfit("base64", f"`{key}` is a data URL without a comma: {printable(value, 40)}")
    return _of_base64(body, key) if head.endswith(";base64") else unquote_to_bytes(body)


def _of_base64(value: str, key: str) -> bytes:
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unfit("base64", f"`{key}` is broken base64: {error}: {printable(value, 40)}") from error


def fetch_medium(url: str, key: str) -> Path:
    """Return the file of an address, fetched once into `$VLM_HOME/.cache/media`. Raises Unfit with the reason."""
    target = home() / ".cache" / "media" / hashlib.sha256(url.encode(errors="replace")).hexdigest()[:32]
    if target.exists():
        return target
    said = f"`{key}` {printable(url, 90)}"
    try:
        urlsplit(url)  # ValueError where it is none
        with (
            open_client(url, timeout=SECONDS, follow_redirects=True, max_redirects=REDIRECTS) as client,
            exchange(client, "GET", url, seconds=SECONDS) as (response, _),
        ):
            if response.status_code != 200:
                raise Unfit("url", f"{said}: the server answered {response.status_code}")
            content = read_body(response, MOST_BYTES)
    except (TooLarge, ValueError, httpx.InvalidURL) as error:
        raise Unfit("url", f"{said}: {printable(error)}") from error
    except httpx.HTTPError as error:
        raise Unfit("url", f"{said}: {reason_of(error, url)}; {network_fix(error, url)}") from error
    except VlmError as error:
        raise Unfit("url", f"{said}: {error.found}") from error
    write_atomic(target, content)
    return target
