"""From the parts of a request to a prompt: media become files in a folder of the request, text stays text."""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from vlm.cli.server.protocol import ChatMessage, RequestError
from vlm.cli.server.uploads import Uploads
from vlm.core.sample.chat import Template
from vlm.core.sample.media import image_size
from vlm.core.sample.records import Message, Part, image, text, video

SUFFIXES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/jpg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/tiff": ".tif",
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
    "video/x-matroska": ".mkv",
    "video/x-msvideo": ".avi",
}
"""Media types that are taken, and the suffix of the file."""

FETCH_SECONDS = 30
"""Longest time for fetching a file, redirects aside."""
UNFETCHED = "fetch_failed"


@dataclass
class Media:
    """Where media of a request come from.

    Attributes:
        folder: Folder of this request's files.
        uploads: Files that were sent before.
        hosts: Hosts from which http(s) media may be fetched.
        limit: Greatest number of bytes of one file.
        most: Greatest number of images and videos of a request.
        pixels: Greatest number of pixels of an image.
    """

    folder: Path
    uploads: Uploads | None = None
    hosts: frozenset[str] = frozenset()
    limit: int = 64 << 20
    most: int = 1000
    pixels: int = 89_478_485

    def file(self, url: str, param: str) -> Path:
        """Return a file with the content of a URL.

        Raises:
            RequestError: not a data URL, upload or allowed host; or its content is broken or too large.
        """
        if url.startswith("data:"):
            kind, content = self._data(url, param)
        elif url.startswith("upload:"):
            known = self.uploads.find(url.removeprefix("upload:"), self.folder) if self.uploads else None
            if known is None:
                raise RequestError(f"no upload {url[:60]!r}", param=param, code="not_found")
            return known
        elif _scheme(url, param) in ("http", "https"):
            kind, content = self._fetch(url, param)
        else:
            raise RequestError(
                f"{param}: media must be data URLs or uploads, found {url[:30]!r}", param=param, code="invalid_url"
            )
        if len(content) > self.limit:
            raise RequestError(
                f"{param}: {len(content):,} bytes, at most {self.limit:,}", param=param, code="file_too_large"
            )
        return self.store(kind, content, param)

    def store(self, kind: str, content: bytes, param: str) -> Path:
        """Write content to a file named by its digest. Raises RequestError for an unknown media type."""
        if kind not in SUFFIXES:
            raise RequestError(
                f"{param}: media type {kind[:60]!r} is not taken; send one of {', '.join(sorted(SUFFIXES))}",
                param=param,
                code="unsupported_media_type",
            )
        path = self.folder / (hashlib.sha256(content).hexdigest()[:32] + SUFFIXES[kind])
        if not path.exists():
            path.write_bytes(content)
        return path

    def _data(self, url: str, param: str) -> tuple[str, bytes]:
        head, comma, body = url.partition(",")
        kind, *options = head.removeprefix("data:").split(";")
        if not comma:
            raise RequestError(f"{param}: a data URL without a comma", param=param, code="invalid_url")
        try:
            if "base64" in options:
                return kind.lower(), base64.b64decode(re.sub(r"\s", "", body), validate=True)
            return kind.lower(), unquote_to_bytes(body)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"{param}: broken base64: {error}", param=param, code="invalid_base64") from error

    def _fetch(self, url: str, param: str) -> tuple[str, bytes]:
        """Fetch from an allowed host; a redirect may lead only to an allowed host too."""
        import httpx

        from vlm.core.net import TooLarge, exchange, read_body

        for _ in range(5):
            host = urlsplit(url).hostname or ""
            if host not in self.hosts:
                raise RequestError(
                    f"{param}: images are not fetched from {host[:80]!r}; send a data URL",
                    param=param,
                    code="host_not_allowed",
                )
            try:
                with (
                    httpx.Client(timeout=FETCH_SECONDS, trust_env=False) as client,
                    exchange(client, "GET", url, seconds=FETCH_SECONDS) as (response, _),
                ):
                    if response.has_redirect_location:
                        url = urljoin(url, response.headers["location"])
                        continue
                    if response.status_code != 200:
                        raise RequestError(
                            f"{param}: {host} answered {response.status_code}", param=param, code=UNFETCHED
                        )
                    content = read_body(response, self.limit)
                    return response.headers.get("content-type", "").split(";")[0].strip().lower(), content
            except TooLarge as error:
                raise RequestError(f"{param}: {error}", param=param, code="file_too_large") from error
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                raise RequestError(
                    f"{param}: nothing can be fetched from {host}: {error}", param=param, code=UNFETCHED
                ) from error
        raise RequestError(f"{param}: too many redirects", param=param, code=UNFETCHED)


def read_messages(
    messages: Sequence[ChatMessage], media: Media, template: Template, *, exact: bool = False
) -> list[Message]:
    """Return the messages as the encoder takes them; with `exact` nothing is written between their parts.

    Otherwise an image is followed by a newline unless the text behind it begins with one. Several images in front of
    one text are named `Image-1: `, `Image-2: `, ... where the family's published prompts name them.

    Raises:
        RequestError: no user turn, two turns of one role in a row, media in another role's turn, or broken media.
    """
    given = [part for message in messages if isinstance(message.content, list) for part in message.content]
    count = sum(part.image_url is not None or part.video_url is not None for part in given)
    if count > media.most:  # before the first of them is read
        raise RequestError(
            f"{count:,} images and videos; at most {media.most:,} in a request",
            param="messages",
            code="too_many_images",
        )
    result: list[Message] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = "system" if message.role == "developer" else message.role
        if role == "system" and number:
            raise RequestError(f"{where}: a system message must be the first", param=where)
        if result and result[-1]["role"] == role:
            raise RequestError(f"{where}: two messages of the {role} in a row", param=where)
        content = _content(message, media, where)
        content = content if exact else _separated(content, template)
        if role != "user" and any(part["type"] != "text" for part in content):
            raise RequestError(f"{where}: images and videos belong into messages of the user", param=where)
        result.append({"role": role, "content": content})
    if result[-1]["role"] != "user":
        raise RequestError("the last message must be the user's", param="messages")
    return result


def _content(message: ChatMessage, media: Media, where: str) -> list[Part]:
    if isinstance(message.content, str) or message.content is None:
        return [text(message.content or "")]
    found: list[Part] = []
    for number, part in enumerate(message.content):
        param = f"{where}.content[{number}]"
        if part.type in ("text", "input_text") and part.text is not None:
            found.append(text(part.text))
        elif part.type == "image_url" and part.image_url is not None:
            found.append(image(_small_enough(media.file(_url(part.image_url, param), param), media.pixels, param)))
        elif part.type == "video_url" and part.video_url is not None:
            found.append(video(media.file(_url(part.video_url, param), param)))
        else:
            raise RequestError(f"{param}: a part of type {part.type[:40]!r} that is not known or empty", param=param)
    return found


def _small_enough(path: Path, limit: int, param: str) -> Path:
    width, height = image_size(path)  # of the header: nothing is decoded
    if width * height > limit:
        raise RequestError(
            f"{param}: {width:,} x {height:,} pixels are {width * height:,}, at most {limit:,}",
            param=param,
            code="image_too_large",
        )
    return path


def _separated(parts: list[Part], template: Template) -> list[Part]:
    images = [i for i, part in enumerate(parts) if part["type"] == "image"]
    # images in a row, nothing in front: the way a person attaches them
    named = len(images) > 1 and images == list(range(len(images))) and not template.images_first
    result: list[Part] = []
    for i, part in enumerate(parts):
        if named and part["type"] == "image":
            result.append(text(f"Image-{i + 1}: "))
        result.append(part)
        if part["type"] != "text":
            following = parts[i + 1] if i + 1 < len(parts) else None
            begins = following is not None and following["type"] == "text" and following["text"].startswith("\n")
            if not begins:
                result.append(text("\n"))
    return result


def _scheme(url: str, param: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError as error:
        raise RequestError(f"{param}: {url[:60]!r} is no URL: {error}", param=param, code="invalid_url") from error


def _url(value: dict[str, Any] | str, param: str) -> str:
    url = value if isinstance(value, str) else value.get("url")
    if not isinstance(url, str) or not url:
        raise RequestError(f"{param}: no url", param=param)
    return url
