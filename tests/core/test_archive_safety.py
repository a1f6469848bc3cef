"""Malicious, split and cut archives: what is refused leaves nothing behind, and nothing lands outside."""

import io
import itertools
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from vlm.core.errors import FetchError
from vlm.core.fetch import archive
from vlm.core.fetch.archive import JoinedParts, extract


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as t:
        for info, content in members:
            info.size = len(content)
            t.addfile(info, io.BytesIO(content) if info.isfile() else None)
    return path


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mtime = kind, target, 1_000_000_000
    return made


def zip_of(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as z:
        for name, content in members.items():
            z.writestr(name, content)
    return path


def refused(path: Path, into: Path, why: str) -> None:
    before = sorted(into.parent.rglob("*"))
    with pytest.raises(FetchError, match=why):
        extract(path, {"*": ""}, into)
    assert sorted(into.parent.rglob("*")) == before


def test_a_link_that_a_later_member_writes_through_is_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        members = [(info("good"), b"x"), (info("d", kind, str(outside)), b""), (info("d/evil"), b"x")]
        refused(tar_of(tmp_path / "l.tar.gz", members), tmp_path / "into", "is a link or a device")
    assert not list(outside.iterdir())


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "FREE", 100_000)
    zeros = bytes(30_000_000)
    refused(zip_of(tmp_path / "b.zip", {"a": zeros}), tmp_path / "into", "an archive bomb")
    refused(tar_of(tmp_path / "b.tar.gz", [(info("a"), zeros)]), tmp_path / "into", "an archive bomb")
    refused(
        tar_of(tmp_path / "b.tar.xz", [(info(str(i)), zeros[:1_000_000]) for i in range(30)], "w:xz"),
        tmp_path / "into",
        "an archive bomb",
    )
    sparse = info("s")
    sparse.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"  # the real size that the file claims
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "s.tar").write_bytes(bytes(header) + bytes(1024))
    refused(tmp_path / "s.tar", tmp_path / "into", "is a link or a device")


def test_a_zip_whose_members_share_their_bytes_is_refused(tmp_path):
    path = zip_of(tmp_path / "o.zip", {"a": b"x" * 5000, "b": b"y"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    first = data.index(b"PK\x01\x02")
    data[second + 20 : second + 28] = struct.pack("<II", 5000, 5000)  # sizes of the first
    data[second + 42 : second + 46] = data[first + 42 : first + 46]  # and its place
    path.write_bytes(data)
    refused(path, tmp_path / "into", "overlap")


def test_an_encrypted_zip_and_two_members_of_one_path_are_errors(tmp_path):
    path = zip_of(tmp_path / "e.zip", {"a": b"secret"})
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    path.write_bytes(data)
    refused(path, tmp_path / "into", "damaged or not an archive")
    refused(tar_of(tmp_path / "t.tar", [(info("a"), b"x"), (info("a/b"), b"x")], "w"), tmp_path / "into", "two members")


@pytest.mark.parametrize("kind", ["tar.gz", "tar", "zip"])
def test_split_parts_are_one_archive_and_a_lost_part_is_an_error(tmp_path, kind):
    members = {f"d/{i}.bin": bytes([i]) * 3000 + bytes(range(256)) for i in range(20)}
    whole = tmp_path / f"whole.{kind}"
    if kind == "zip":
        zip_of(whole, members, zipfile.ZIP_STORED)
    else:
        tar_of(whole, [(info(n), c) for n, c in members.items()], "w:gz" if kind == "tar.gz" else "w")
    data = whole.read_bytes()
    cuts = [0, len(data) // 3, len(data) // 3 + 1, 2 * len(data) // 3, len(data)]
    parts = []
    for i, (a, b) in enumerate(itertools.pairwise(cuts)):
        parts.append(tmp_path / f"whole.{kind}.parta{'abcd'[i]}")
        parts[-1].write_bytes(data[a:b])
    found = extract(parts, {"d/*": ""}, tmp_path / "into")
    assert {name: path.read_bytes() for path, name in found} == {n.removeprefix("d/"): c for n, c in members.items()}
    for lost in ([0, 1, 2], [0, 1, 3], [1, 2, 3]):
        with pytest.raises(FetchError, match=r"damaged|cut short"):
            extract([parts[i] for i in lost], {"*": ""}, tmp_path / "again")
        assert not (tmp_path / "again").exists()


def test_a_tar_that_ends_between_two_members_is_cut_short(tmp_path):
    path = tar_of(tmp_path / "a.tar", [(info(str(i)), b"x" * 512) for i in range(3)], "w")
    path.write_bytes(path.read_bytes()[: 2 * 1024])
    refused(path, tmp_path / "into", "cut short")


def test_joined_parts_read_and_seek_as_one_file(tmp_path):
    paths = []
    for i, size in enumerate((5, 0, 1, 10)):
        paths.append(tmp_path / str(i))
        paths[-1].write_bytes(bytes(range(10 * i, 10 * i + size)))
    with JoinedParts(paths) as joined:
        whole = b"".join(path.read_bytes() for path in paths)
        assert joined.read() == whole
        buffered = io.BufferedReader(joined)  # a raw read may stop where a part ends
        for at in range(len(whole) + 2):
            buffered.seek(at)
            assert buffered.read(7) == whole[at : at + 7]
        joined.seek(-3, 2)
        assert (joined.tell(), joined.read()) == (len(whole) - 3, whole[-3:])


def test_files_of_an_interrupted_run_are_not_written_again(tmp_path):
    path = tar_of(tmp_path / "a.tar", [(info(str(i)), b"content %d" % i) for i in range(5)], "w")
    into = tmp_path / "into"
    extract(path, {"*": ""}, into)
    before = {p.name: p.stat().st_ino for p in into.iterdir()}
    (into / "3").write_bytes(b"cut")
    (into / "4.part").write_bytes(b"left by a kill")
    extract(path, {"*": ""}, into)
    after = {p.name: p.stat().st_ino for p in into.iterdir() if p.suffix != ".part"}
    assert [name for name in before if before[name] != after[name]] == ["3"]
    assert (into / "3").read_bytes() == b"content 3"
