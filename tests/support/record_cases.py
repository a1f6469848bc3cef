"""Training data as people write it: each case is a folder of pictures, a file of records, and what each line should be.

A line is a record or bytes. `kinds` maps the number of a line to the kind of its fault (of `vlm.core.check.check`), an
error or a warning; lines without an entry are used.
"""

import base64
import gzip
import io
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from support.videos import write_video

Q, A = "<image>\nWhat color is the picture?", "It is red."
RED, BLUE = (220, 20, 20), (20, 20, 220)
Line = dict[str, Any] | bytes


class Case(NamedTuple):
    """Lines of a file, the kind of fault of some of them, what the file may hold on purpose, and its name."""

    lines: list[Line]
    kinds: Mapping[int, str] = MappingProxyType({})
    allow: tuple[str, ...] = ()
    end: bytes = b"\n"
    before: bytes = b""
    decoded: Mapping[int, str] = MappingProxyType({})
    """Kinds that only decoding shows."""

    def write(self, path: Path) -> None:
        """Write the records."""
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in self.lines]
        path.write_bytes(self.before + self.end.join(raw))


def turns(*values: Any, roles: tuple[str, str] = ("human", "gpt")) -> list[dict[str, Any]]:
    return [{"from": roles[i % 2], "value": value} for i, value in enumerate(values)]


def asks(image: Any, question: str = Q, answer: Any = A, **more: Any) -> dict[str, Any]:
    asks.number += 1  # type: ignore[attr-defined]
    return {"id": f"r{asks.number}", "image": image, "conversations": turns(question, answer), **more}  # type: ignore[attr-defined]


asks.number = 0  # type: ignore[attr-defined]


def without(record: dict[str, Any], *keys: str, **more: Any) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in keys} | more


OK = [asks(f"images/{color}.png", answer=f"It is {color}.") for color in ("red", "green", "blue")]
SPECIAL = "Explain <img> and </img> and <IMG_CONTEXT> and <|im_end|>"
NAMES = ["a b.png", "100%.png", "a#1.png", "x?y.png", "[red]x.png", "{run}.png", "-dash.png", "emoji😀.png"]
NAMES += ["q'uote\".png", "new\nline.png", "Bücher.png"]
CLIPS: list[Any] = [[0, 0.5], [1, 0.5], [0], "0-2", [None, 2], [-1, 2], [0, 99], [50, 60], {"start": 0}, ["0", "2"]]
CLIPS += [[0, 0], 3, [1, 2, 3], "00:00:01-00:00:02", [], True, [True, 2], [float("nan"), 2], [0, float("inf")]]
BLOB = base64.b64encode(bytes(range(256)) * 60).decode()

CASES: dict[str, Case] = {
    "bom": Case(OK, before=b"\xef\xbb\xbf"),
    "crlf": Case(OK, end=b"\r\n"),
    "blank lines": Case([*OK[:2], b"", b" \t", OK[2], b"", b""]),
    "gbk": Case(
        [OK[0], json.dumps(asks("images/red.png", answer="红色"), ensure_ascii=False).encode("gbk")], {2: "json"}
    ),
    "nul tail": Case([*OK, b"\0" * 40], {4: "json"}),
    "broken lines": Case(
        [b"{", b"[1]", b"7", b"null", b'{"a":' * 100_000, b'{"id": ' + b"9" * 5000 + b"}", OK[0]],
        dict.fromkeys(range(1, 7), "json"),
    ),
    "surrogates": Case(
        [asks("images/red.png", answer="cut \ud83d"), asks("images/\ud83d.png"), asks("images/red.png", id="\ud83d")],
        {1: "turns", 2: "path"},
    ),
    "images key": Case([without(r, "image", images=[r["image"]]) for r in OK], dict.fromkeys((1, 2, 3), "keys")),
    "images key, no placeholder": Case(
        [{"images": ["images/red.png"], "conversations": turns("What?", A)}], {1: "keys"}
    ),
    "videos key": Case([{"videos": ["v.mp4"], "conversations": turns("What?", A)}], {1: "keys"}),
    "messages": Case([{"messages": [{"role": "user", "content": Q}], "images": ["images/red.png"]}], {1: "turns"}),
    "roles": Case([asks("images/red.png") | {"conversations": turns(Q, A, roles=("user", "assistant"))}], {1: "turns"}),
    "system key": Case(
        [
            asks("images/red.png", system="Be brief."),
            asks("images/red.png", system_prompt="Be brief.", system="Be long."),
        ],
        {2: "turns"},
    ),
    "loss": Case(
        [
            {"id": 1, "conversations": [*turns("Q"), {"from": "gpt", "value": A, "loss": 0}, *turns("Q", A)]},
            {"id": 2, "conversations": [*turns("Q"), {"from": "gpt", "value": A, "loss": 0}]},
            {"id": 3, "conversations": [*turns("Q"), {"from": "gpt", "value": A, "loss": "no"}]},
        ],
        {2: "no labels", 3: "turns"},
    ),
    "no placeholder, two files": Case(
        [asks(["images/red.png", "images/blue.png"], q) for q in ("Compare.", "a <image1> and <image2>")],
        {1: "placeholders", 2: "placeholders"},
    ),
    "picture missing": Case(
        [
            asks(""),
            asks([]),
            asks(None),
            without(asks(1), "image"),
            asks(["images/red.png", ""], "<image><image>x"),
            asks(["images/red.png", None], "<image><image>x"),
            asks([["images/red.png"]]),
            asks({"path": "images/red.png"}),
            asks("", "no placeholder"),
            asks([], "no placeholder"),
        ],
        {1: "path", 2: "placeholders", 3: "placeholders", 4: "placeholders"} | dict.fromkeys(range(5, 10), "path"),
    ),
    "no text": Case(
        [
            *(asks("images/red.png", answer=value) for value in (7, None, ["It is red."], {}, True)),
            asks("images/red.png") | {"conversations": [*turns(Q), {"from": "gpt"}]},
            asks("images/red.png") | {"conversations": turns([{"type": "text", "text": "hi"}], "x")},
            asks("images/red.png") | {"conversations": "Q"},
            asks("images/red.png") | {"conversations": ["Q", "A"]},
        ],
        dict.fromkeys(range(1, 10), "turns"),
    ),
    "answer first": Case(
        [
            asks("images/red.png") | {"conversations": [{"from": "gpt", "value": "Hello"}, *turns(Q, A)]},
            asks("images/red.png")
            | {"conversations": [{"from": "gpt", "value": "<image>\nHello"}, *turns("What?", A)]},
            {"id": "g3", "conversations": [{"from": "gpt", "value": "only an answer"}]},
        ],
        {1: "first turn", 2: "placeholders", 3: "turns"},
    ),
    "question last": Case(
        [
            asks("images/red.png") | {"conversations": turns(Q, A, "And now?")},
            asks("images/red.png") | {"conversations": turns(Q)},
        ],
        {1: "unanswered", 2: "no labels"},
    ),
    "empty answer": Case(
        [
            asks("images/red.png", answer=""),
            asks("images/red.png", answer="  \n"),
            asks("images/red.png") | {"conversations": turns(Q, "", "again?", "red")},
        ],
        dict.fromkeys((1, 2, 3), "empty answer"),
    ),
    "empty answer, allowed": Case(
        [asks("images/red.png") | {"conversations": turns(Q, "", "again?", "red")}, asks("images/red.png", answer="")],
        {1: "empty turn", 2: "no labels"},
        allow=("empty-answers",),
    ),
    "placeholder in answer": Case(
        [
            asks("images/red.png", "Draw.", "<image>\nhere"),
            asks(["images/red.png", "images/blue.png"], "<image> first", "and <image> second"),
            asks("images/red.png", Q, "That was <image>."),
        ],
        {1: "placeholders", 2: "placeholders", 3: "placeholder in text"},
    ),
    "quoted": Case(
        [
            {"id": "t", "conversations": turns("How do I write an <image> tag?", "Like <image>.")},
            asks("images/red.png", "<image>\nConvert this to an <image> tag."),
            {"id": "t3", "conversations": turns(SPECIAL, "<|im_end|> ends.")},
        ],
        {1: "placeholders", 2: "placeholders", 3: "marker"},
    ),
    "quoted, allowed": Case(
        [{"id": "t", "conversations": turns("How do I write an <image> tag?", "Like <image>.")}],
        {1: "placeholder in text"},
        allow=("quoted-placeholders",),
    ),
    "addresses": Case(
        [asks(f"{scheme}://host/a.jpg") for scheme in ("https", "s3", "HTTP")], dict.fromkeys((1, 2, 3), "path")
    ),
    "base64": Case(
        [
            asks(f"data:image/png;base64,{BLOB}"),
            asks(BLOB),
            asks("iVBORw0KGgo" + BLOB),
            asks("/9j/" + BLOB[:100]),
            OK[0],
        ],
        dict.fromkeys((1, 2, 3, 4), "path"),
    ),
    "written for another system": Case(
        [asks("images\\red.png"), asks(" images/red.png "), asks("images/RED.PNG"), asks("./images/../images/red.png")],
        dict.fromkeys((1, 2, 3), "missing"),
    ),
    "odd names": Case([asks(f"images/{name}") for name in NAMES], {11: "missing"}),
    "names that no file has": Case(
        [
            *(asks(name) for name in ("images/re\0d.png", "x" * 300 + ".png", "a/" * 3000 + "x.png")),
            *(asks(name) for name in ("images", "images/red.png/x.png", ".")),
            {"id": "v", "video": "x" * 300 + ".mp4", "conversations": turns("<video>", A)},
            OK[0],
        ],
        {1: "path", 2: "path", 3: "path", 4: "unreadable", 5: "missing", 6: "unreadable", 7: "path"},
    ),
    "ids": Case(
        [OK[0], OK[1] | {"id": OK[0]["id"]}, without(OK[0], "id"), OK[0] | {"id": ""}, OK[0] | {"id": None}]
        + [OK[0] | {"id": id} for id in ({"a": 1}, [1], 1e308, float("nan"), True)],
        {2: "same id", 3: "no id", 4: "no id", 5: "no id"},
    ),
    "turned": Case([asks(f"images/{n}") for n in ("phone.jpg", "phone3.png", "red.png")], {1: "rotated", 2: "rotated"}),
    "transparent": Case(
        [asks(f"images/logo-{mode}.png") for mode in ("RGBA", "LA", "P")], dict.fromkeys((1, 2, 3), "transparent")
    ),
    "modes": Case(
        [asks(f"images/{n}") for n in ("cmyk.jpg", "cmyk.tiff", "l16.png", "bit.png", "i32.tiff", "pages.tiff")]
        + [
            asks(f"images/{n}")
            for n in ("anim.gif", "anim.webp", "anim.png", "i.ico", "png-named.jpg", "noext", "ycc.jpg")
        ]
        + [asks("images/float.tiff"), asks("images/float01.tiff"), asks("images/lab.tiff")],
        {14: "float", 15: "float"},
    ),
    "broken files": Case(
        [asks(f"images/{n}") for n in ("html.jpg", "empty.jpg", "v.svg", "gz.jpg", "lfs.jpg", "a.heic")]
        + [asks(f"images/{n}") for n in ("cut.jpg", "cut.png", "crc.png", "trail.jpg", "bigtext.png", "manytext.png")]
        + [asks("images/badicc.png")],
        dict.fromkeys(range(1, 7), "unreadable") | {7: "unfinished", 8: "unfinished"},
        decoded=dict.fromkeys((7, 8, 9), "unreadable"),
    ),
    "shapes": Case(
        [asks(f"images/{w}x{h}.png") for w, h in ((1, 1), (1, 3000), (3000, 1), (2, 1), (1, 20000), (65500, 3))]
    ),
    "huge": Case([asks("images/100M.png"), asks("images/196M.png")], {2: "unreadable"}),
    "videos": Case(
        [
            {"id": n, "video": f"v/{n}", "conversations": turns("<video>\nWhat?", A)}
            for n in ("good.mp4", "empty.mp4", "html.mp4")
        ]
        + [
            {"id": "gone", "video": "v/missing.mp4", "conversations": turns("<video>\nWhat?", A)},
            {"id": "list", "video": ["v/good.mp4"], "conversations": turns("What?", A)},
            {"id": "two", "video": ["v/good.mp4"] * 2, "conversations": turns("<video><video>x", A)},
            {
                "id": "both",
                "video": "v/good.mp4",
                "image": "images/red.png",
                "conversations": turns("<image><video>", A),
            },
            {"id": "mark", "video": "v/good.mp4", "conversations": turns("<image>\nWhat?", A)},
            asks("v/good.mp4"),
        ],
        {4: "missing", 7: "keys", 8: "placeholders", 9: "unreadable"},
        decoded={2: "unreadable", 3: "unreadable"},
    ),
    "clips": Case(
        [
            {"id": i, "video": "v/good.mp4", "clip": clip, "conversations": turns("<video>", A)}
            for i, clip in enumerate(CLIPS)
        ],
        {i: "clip" for i, clip in enumerate(CLIPS, 1) if i not in (1, 7, 8)},
        decoded={8: "unreadable"},
    ),
    "outside": Case(
        [asks(f"../{name}") for name in ("outside.png", "../../../etc/passwd")]
        + [asks("/etc/passwd"), asks("images/../../tiny/train.jsonl"), asks("images/../images/red.png")],
        dict.fromkeys((1, 2, 3, 4), "outside"),
    ),
    "markup": Case(
        [
            asks("images/red.png", id=id)
            for id in ("[/bold]", "[red]x[/red]", "\x1b]0;PWN\x07", "[link=http://e]k[/link]")
        ]
        + [asks("images/[/nope].jpg", id="[/oops]"), asks("images/\x1b[2J.jpg", id="a")],
        {5: "missing", 6: "missing"},
    ),
}


def big_png(path: Path, width: int, height: int) -> None:
    """Write a PNG of one bit a pixel without ever holding it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row, packer = bytes(1 + (width + 7) // 8), zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def make_media(root: Path) -> None:
    """Write every file that the cases name."""
    folder, movies = root / "images", root / "v"
    folder.mkdir(parents=True)
    movies.mkdir()
    red, blue = Image.new("RGB", (60, 60), RED), Image.new("RGB", (60, 60), BLUE)
    for color, rgb in {"red": RED, "green": (20, 200, 20), "blue": BLUE}.items():
        Image.new("RGB", (60, 60), rgb).save(folder / f"{color}.png")
    for name in [*NAMES[:-1], "Bu\u0308cher.png"]:
        red.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(folder / "phone.jpg", exif=exif)
    exif[0x0112] = 3
    red.save(folder / "phone3.png", exif=exif)
    for mode in ("RGBA", "LA"):
        Image.new(mode, (60, 60)).save(folder / f"logo-{mode}.png")
    Image.new("P", (60, 60)).save(folder / "logo-P.png", transparency=0)
    red.convert("CMYK").save(folder / "cmyk.jpg", quality=98)
    red.convert("CMYK").save(folder / "cmyk.tiff")
    Image.fromarray(np.full((60, 60), 40000, np.uint16)).save(folder / "l16.png")
    Image.fromarray(np.full((60, 60), 40000, np.int32)).save(folder / "i32.tiff")
    Image.fromarray(np.full((60, 60), 200.0, np.float32)).save(folder / "float.tiff")
    Image.fromarray(np.full((60, 60), 0.8, np.float32)).save(folder / "float01.tiff")
    red.convert("1").save(folder / "bit.png")
    lab = ImageCms.profileToProfile(
        red, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(folder / "lab.tiff")
    for name in ("pages.tiff", "anim.gif", "anim.webp", "anim.png"):
        red.save(folder / name, save_all=True, append_images=[blue])
    red.save(folder / "i.ico")
    red.save(folder / "png-named.jpg", "PNG")
    red.save(folder / "noext", "PNG")
    red.convert("YCbCr").save(folder / "ycc.jpg")
    make_broken(folder, red)
    for width, height in ((1, 1), (1, 3000), (3000, 1), (2, 1), (1, 20000), (65500, 3)):
        Image.new("RGB", (width, height), RED).save(folder / f"{width}x{height}.png")
    big_png(folder / "100M.png", 10000, 10000)
    big_png(folder / "196M.png", 14000, 14000)
    write_video(movies / "good.mp4", range(0, 200, 10), (64, 64))
    (movies / "empty.mp4").write_bytes(b"")
    (movies / "html.mp4").write_text("<html>404")


def make_broken(folder: Path, red: Image.Image) -> None:
    """Write files that are no image, or half of one."""
    (folder / "html.jpg").write_text("<!DOCTYPE html><html>404</html>")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "v.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>')
    (folder / "lfs.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64)
    (folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(200))
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    made = {}
    for kind in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        made[kind] = buffer.getvalue()
    (folder / "gz.jpg").write_bytes(gzip.compress(made["JPEG"]))
    (folder / "trail.jpg").write_bytes(made["JPEG"] + bytes(900))
    (folder / "cut.jpg").write_bytes(made["JPEG"][: len(made["JPEG"]) // 2])
    (folder / "cut.png").write_bytes(made["PNG"][: len(made["PNG"]) // 2])
    flipped = bytearray(made["PNG"])
    flipped[len(flipped) // 2] ^= 0xFF
    (folder / "crc.png").write_bytes(flipped)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("prompt", "x" * (2 << 20), zip=True)
    red.save(folder / "bigtext.png", pnginfo=info)
    info = PngImagePlugin.PngInfo()
    for k in range(3):
        info.add_text(f"k{k}", "y" * (900 << 10), zip=True)
    red.save(folder / "manytext.png", pnginfo=info)
    red.save(folder / "badicc.png", icc_profile=b"garbage")
