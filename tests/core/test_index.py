"""Lines in any order from an index on disk, and orders that need no table."""

import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.core.errors import DataError
from vlm.core.sample.index import HEADER, LineIndex, Mixture, Shuffle
from vlm.core.sample.lines import iter_jsonl


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "index"


@settings(deadline=None)  # a busy machine must not decide
@given(
    st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")) | st.sampled_from([b"", b" \r", b"\t"])),
    st.booleans(),
    st.integers(1, 9),
)
def test_records_are_the_lines_that_are_not_blank(tmp_path_factory, lines, ended, chunk):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    content = b"x\n" + b"\n".join(lines) + b"\n" * ended
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm.core.sample.index.CHUNK", chunk)
        index = LineIndex(path, path.parent / "index")
    wanted = [(i, line) for i, line in enumerate(content.split(b"\n"), 1) if line.strip(b" \t\r")]
    found = [(index.line(i), index[i]) for i in range(len(index))]
    assert [line for line, _ in found] == [line for line, _ in wanted]
    for (_, has), (_, line) in zip(found, wanted, strict=True):
        assert has.startswith(line) and not has[len(line) :].strip(b" \t\r\n"), "only blank lines behind it"
    assert b"".join(record for _, record in found) == content


def test_blank_lines_are_no_records_and_do_not_change_the_numbers_of_lines(tmp_path, folder):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a\n\n  \r\nb\n\n")
    for _ in range(2):  # made, then read again
        index = LineIndex(path, folder)
        assert [(index.line(i), index[i].strip()) for i in range(len(index))] == [(1, b"a"), (4, b"b")]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'[\n  {"id": 1}\n]\n', "is one JSON list"),
        (b'\xef\xbb\xbf \n[{"id": 1}]', "is one JSON list"),
        ('{"id": 1}\n'.encode("utf-16"), "is UTF-16"),
        (b"\x1f\x8b\x08\x00", "is compressed"),
        (b"PK\x03\x04", "is a zip"),
        (b"PAR1", "is a Parquet"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_way_out(tmp_path, folder, content, why):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    for read in (lambda: LineIndex(path, folder), lambda: list(iter_jsonl(path))):
        with pytest.raises(DataError, match=why) as error:
            read()
        assert "JSON lines" in str(error.value) and error.value.fix


def test_chunks_do_not_matter(tmp_path, folder, monkeypatch):
    path = tmp_path / "a.jsonl"
    content = b"".join(b"x" * (i % 7 + 1) + b"\n" for i in range(500)) + b"last"
    path.write_bytes(content)
    monkeypatch.setattr("vlm.core.sample.index.CHUNK", 5)
    index = LineIndex(path, folder)
    assert [index[i] for i in range(len(index))] == content.splitlines(keepends=True)
    with pytest.raises(IndexError):
        index[501]


def test_the_index_is_made_once_and_again_when_the_file_changes(tmp_path, folder):
    path = tmp_path / "a.jsonl"

    def made():
        (file,) = folder.glob("*.lines")
        return file.stat().st_ino

    path.write_bytes(b"a\nb\n")
    LineIndex(path, folder)
    first = made()
    assert len(LineIndex(path, folder)) == 2 and made() == first
    before = path.stat()
    path.write_bytes(b"a\n\n\n")  # as long as before, and with its old time
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(LineIndex(path, folder)) == 1 and made() != first
    with path.open("ab") as f:
        f.write(b"c\n")
    assert len(LineIndex(path, folder)) == 2


@pytest.mark.parametrize("cut", [1, 8, 16])
def test_a_damaged_index_is_made_again(tmp_path, folder, cut):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a\nb\nc\n")
    LineIndex(path, folder)
    (file,) = folder.glob("*.lines")
    file.write_bytes(file.read_bytes()[:-cut])
    assert [LineIndex(path, folder)[i] for i in range(3)] == [b"a\n", b"b\n", b"c\n"]
    assert file.stat().st_size == HEADER.size + 5 * 8


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    path, no_folder = tmp_path / "a.jsonl", tmp_path / "file"
    path.write_bytes(b"a\nb\n")
    no_folder.write_text("not a folder")
    index = LineIndex(path, no_folder)
    assert [index[0], index[1]] == [b"a\n", b"b\n"] and no_folder.read_text() == "not a folder"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*nothing\.jsonl"):
        LineIndex(tmp_path / "nothing.jsonl")


def _lines(path, folder, out):
    index = LineIndex(path, folder)
    out.put((len(index), index[len(index) - 1]))


def test_processes_that_start_together_share_one_index(tmp_path, folder):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b"%d\n" % i for i in range(20_000)))
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    processes = [context.Process(target=_lines, args=(path, folder, out)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [out.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert found == [(20_000, b"19999\n")] * 4
    assert sorted(p.suffix for p in folder.iterdir()) == [".lines", ".lock"]


GROWTH = """
import random, sys
from pathlib import Path
from vlm.core.sample.index import LineIndex, Mixture, Shuffle
def private():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])
before = private()
index = LineIndex(Path(sys.argv[1]), Path(sys.argv[2]))
mixture = Mixture([len(index)], [2.5], 0)
order = Shuffle(len(mixture), 0, 1, in_memory=0)
total = sum(len(index[mixture[order[k]][1]]) for k in range(5000))
print(len(index), total, private() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("n", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_file(tmp_path, folder, n):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as f:
        for first in range(0, n, 10_000):
            numbers = range(first, first + 10_000)
            f.write(b"".join(b'{"id": %d, "text": "some words of a sample"}\n' % i for i in numbers))
    command = [sys.executable, "-c", GROWTH, str(path), str(folder)]
    for _ in range(2):  # the first makes the index, the second finds it
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines, total, growth = map(int, done.stdout.split())
    assert lines == n and total > 5000 * 40
    # the table of the fraction's lines is 8 bytes a line up to 2^20 lines, and none beyond
    assert growth < 2000 + 20 * min(n, 1 << 20) // 1000, f"{growth} KiB for {n} lines"


@pytest.mark.parametrize("in_memory", [0, 10**6])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 17, 64, 1000])
def test_a_shuffle_is_a_permutation_of_its_key(n, in_memory):
    one, same, other = (Shuffle(n, *key, in_memory=in_memory) for key in ((3, 1), (3, 1), (3, 2)))
    assert sorted(one) == list(range(n)) == sorted(other)
    assert [same[i] for i in reversed(range(n))] == list(one)[::-1]
    if n >= 17:
        assert list(one) != list(other) and list(one) != list(range(n))


def test_a_shuffle_without_a_table_is_as_random_as_one_with(n=4096):
    order = np.array(Shuffle(n, 7, in_memory=0))
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.08
    assert (np.diff(order) == 1).sum() < 10
    halves = [(order[: n // 2] < n // 2).mean(), (order[::2] < n // 2).mean()]
    assert all(abs(share - 0.5) < 0.06 for share in halves)


def test_small_orders_are_those_of_numpy():
    assert list(Shuffle(100, 5, 2)) == np.random.default_rng([5, 2]).permutation(100).tolist()


REPEATS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 3.0])


@given(st.lists(st.tuples(st.integers(0, 30), REPEATS), min_size=1, max_size=4))
def test_a_mixture_is_whole_repeats_and_a_choice_for_the_rest(files):
    lengths, repeats = zip(*files, strict=True)
    mixture = Mixture(lengths, repeats, seed=1)
    held = list(mixture)
    for number, (n, repeat) in enumerate(files):
        lines = [line for file, line in held if file == number]
        assert len(lines) == int(repeat) * n + round((repeat - int(repeat)) * n)
        counts = [lines.count(line) for line in range(n)]
        assert not counts or (min(counts) >= int(repeat) and max(counts) <= int(repeat) + 1)
    assert len(mixture) == len(held)


def test_any_line_is_found_at_once_in_ten_billion():
    mixture = Mixture([10**10], [1.5], seed=0)
    order = Shuffle(len(mixture), 0, 0)
    rng = random.Random(0)
    picks = [mixture[order[rng.randrange(len(mixture))]] for _ in range(200)]
    assert len(set(picks)) == 200 and max(line for _, line in picks) > 9 * 10**9
