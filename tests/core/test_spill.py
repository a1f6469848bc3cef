"""Collections that hardly grow in memory hold what a list, a dict and a set would."""

import gc
import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.core.home import write_json
from vlm.core.spill import READ, WRITTEN, LazyDict, Places, Seen, Spilled, StoredMap


@given(st.lists(st.one_of(st.text(), st.integers(), st.none()), max_size=40), st.integers(0, 5))
def test_a_spilled_list_is_the_list(values: list[object], held: int) -> None:
    spilled = Spilled(values[:7], held=held)
    for value in values[7:]:
        spilled.append(value)
        assert spilled[-1] == value
    assert list(spilled) == values == spilled[:] and len(spilled) == len(values)
    assert [spilled[i] for i in range(-len(values), len(values))] == values * 2
    with pytest.raises(IndexError):
        spilled[len(values)]


def test_a_long_spilled_list_is_read_in_pieces_of_which_none_is_lost() -> None:
    for n in (READ - 1, READ, READ + 1, 2 * READ + 10):
        assert list(Spilled(range(n), held=0)) == list(range(n))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_spilled_list_leaves_no_file_open_behind() -> None:
    gc.collect()
    before = open_files()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spilled, seen = Spilled(["a"], held=0), Seen()
        assert spilled[0] == "a" and seen.before("id", b"a", "1") is None
        assert open_files() > before
        del spilled, seen
        gc.collect()
    assert open_files() == before


@given(st.lists(st.sampled_from("abcdefgh"), max_size=30))
def test_places_are_those_of_a_dict_in_order(names: list[str]) -> None:
    places = Places()
    for number, name in enumerate(names):
        places.add(name, number)
        assert places.find(name)[-1] == number
    assert all(places.find(name) == [i for i, other in enumerate(names) if other == name] for name in "abcdefghi")


def test_a_key_is_seen_once_in_each_kind_with_its_first_place() -> None:
    with Seen() as seen:
        found = [seen.before("id", b"x", "f:1"), seen.before("id", b"x", "f:2"), seen.before("text", b"x", "f:3")]
        assert found == [None, "f:1", None]
        assert seen.before("id", b"y", "\udcff") is None and seen.before("id", b"y", "f:5") == "\udcff"


def test_a_stored_map_is_the_dict_in_the_order_of_its_keys() -> None:
    stored, held = StoredMap(), dict[str, str]()
    for i in range(3 * WRITTEN):
        key = f"{i * 7919 % (2 * WRITTEN)}\udcff\N{SNOWMAN}"
        assert (key in stored) == (key in held)
        stored[key] = held[key] = str(i)
    del stored["5\udcff\N{SNOWMAN}"], held["5\udcff\N{SNOWMAN}"]
    assert list(stored.pairs()) == sorted(held.items()) and dict(stored) == held and len(stored) == len(held)
    for missing in ("no", "5\udcff\N{SNOWMAN}"):
        assert stored.get(missing) is None and missing not in stored
        with pytest.raises(KeyError):
            del stored[missing]


def test_a_lazy_dict_is_written_like_a_dict_as_often_as_asked(tmp_path: Path) -> None:
    held = {f"{i:03d}": {"a": i, "b": "x"} for i in range(5)}
    for pairs in (held, {}):
        lazy = LazyDict(pairs.items, len(pairs))
        for name in ("one.json", "two.json"):
            write_json(tmp_path / name, {"files": lazy, "n": 1}, in_order=True)
            assert (tmp_path / name).read_text() == json.dumps({"files": pairs, "n": 1}, indent=1) + "\n"
