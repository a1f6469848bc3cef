"""The benchmark tables: every name in them exists, every number has a source, errors help."""

from pathlib import Path

import pytest
import yaml

from vlm.core.errors import ConfigError, UnknownName
from vlm.eval.benchmark import FamilyRule, load_benchmark, tables
from vlm.eval.loaders import LOADERS
from vlm.eval.scorers import AGGREGATES, SCORERS


@pytest.mark.parametrize("name", sorted(tables()))
def test_every_table_names_known_parts_and_sources(name: str) -> None:
    table = load_benchmark(name)
    scorers = {table.scorer} if isinstance(table.scorer, str) else set(table.scorer.values())
    assert table.loader in LOADERS and table.aggregate in AGGREGATES
    assert scorers <= {name for name, scorer in SCORERS.items() if scorer.inputs}
    assert table.prompt_source and table.generation.source and "{" not in table.name + table.folder
    top = 2000 if table.aggregate == "mme" else 100  # points, or percent
    assert all(p.source and 0 <= p.value <= top for p in table.published)
    assert table.counts is None or (table.counts.source and min(table.counts.groups.values()) > 0)
    if not isinstance(table.scorer, str):
        assert table.counts is not None and table.scorer.keys() == table.counts.groups.keys()


def test_published_counts_add_up() -> None:
    expected = {"easyVQA": 9673, "POPE": 8910, "ChartQA": 2500, "MileBench": 6440}
    assert {n: sum(load_benchmark(n).counts.groups.values()) for n in expected} == expected
    tasks = load_benchmark("MileBench").options["tasks"]
    assert sum(map(len, tasks.values())) == 29
    assert [len([s for t, sets in tasks.items() if t[0] == letter for s in sets]) for letter in "TSNI"] == [
        13,
        13,
        2,
        1,
    ]


def test_names_match_in_any_case_and_an_unknown_one_names_the_nearest() -> None:
    assert load_benchmark("mm-NIAH").name == "MM-NIAH"
    assert load_benchmark("Digit-Haystack-4X").folder == "digit-haystack-4x"
    with pytest.raises(UnknownName, match="did you mean pope"):
        load_benchmark("popo")


def test_a_table_of_the_user_is_found_and_all_its_faults_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    own = tmp_path / "benchmarks" / "mine.yaml"
    own.write_text(yaml.safe_dump(load_benchmark("POPE").model_dump() | {"name": "mine"}))
    assert load_benchmark("MINE", tmp_path).name == "mine"
    own.write_text("{name: mine, colour: red, generation: {max_new_tokens: 0}}")
    with pytest.raises(ConfigError) as error:
        load_benchmark("mine", tmp_path)
    for fault in ("title", "colour: unknown key", "generation.max_new_tokens", "mine.yaml"):
        assert fault in str(error.value)


def test_a_family_gets_its_own_prompt_and_tile_budget() -> None:
    pope = load_benchmark("POPE")
    assert pope.for_family("internvl2").prompt == {"join": " ", "suffix": ""}
    assert pope.for_family("convllava").prompt == {"join": "", "suffix": ""}
    assert pope.image_override("internvl2") == {"max_tiles": 6} and pope.image_override("convllava") == {}
    assert load_benchmark("MileBench").image_override("internvl2") == {"max_tiles": 1}
    assert load_benchmark("MM-NIAH").image_override("internvl2") == {"max_tiles": 5, "thumbnail": True}


def test_internvl3_is_asked_like_internvl2_with_the_published_tiles():
    tiles = {"ChartQA": 12, "DocVQA": 18, "InfoVQA": 24, "MMMU": 6, "MVBench": 1, "TextVQA": 6}
    for name, limit in tiles.items():
        table = load_benchmark(name)
        assert table.image_override("internvl2_5")["max_tiles"] == limit
        assert table.for_family("internvl2_5") == table.for_family("internvl2")
    own = load_benchmark("POPE").model_copy(update={"families": {"internvl2_5": FamilyRule(prompt={"suffix": "!"})}})
    assert own.for_family("internvl2_5").prompt["suffix"] == "!"
