"""Suites: the benchmarks that a published system was measured on, by one name."""

import pytest

from vlm.core.errors import UnknownName
from vlm.eval.benchmark import load_benchmark, tables
from vlm.eval.printed import load_published
from vlm.eval.suites import benchmarks_of, names_suite, suites


def test_every_name_of_a_suite_is_a_benchmark_under_its_own_name():
    for suite in suites().values():
        assert [load_benchmark(name).name for name in suite.benchmarks] == suite.benchmarks


def test_suites_hold_what_the_published_tables_show():
    v2pe, internvl, convllava, _ = load_published()
    shown = {
        "v2pe-general": v2pe.tables[0].benchmarks,
        "internvl-chat-v1-2": internvl.benchmarks,
        "convllava": convllava.tables[0].benchmarks,
        "refcoco-all": convllava.tables[1].benchmarks,
    }
    for name, wanted in shown.items():
        assert {bench.lower() for bench in suites()[name].benchmarks} == wanted, name
    assert v2pe.tables[1].benchmarks < {bench.lower() for bench in suites()["v2pe-long"].benchmarks}


def test_names_are_expanded_once_each_in_any_case():
    assert benchmarks_of(["POPE", "V2PE-general", "pope"])[:3] == ["POPE", "ChartQA", "DocVQA"]
    assert len(benchmarks_of(["pope", "v2pe-general"])) == 9
    assert len(benchmarks_of(["all"])) == len(tables())
    assert names_suite(["All"]) and names_suite(["x", "ConvLLaVA"]) and not names_suite(["pope"])


def test_no_suite_has_the_name_of_a_benchmark():
    assert not suites().keys() & {name.lower() for name in tables()} and "all" not in suites()


def test_a_misspelt_suite_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match="v2pe-generl"):
        load_benchmark(benchmarks_of(["v2pe-generl"])[0])
