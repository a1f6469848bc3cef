"""That every fixture is read: no file, section or key of the folder is passed over; ours hold every kind of case."""

from golden.conftest import DATA
from golden.decisions import DECISIONS
from golden.fixtures import Fixtures, find_fixtures

OWN = find_fixtures(DATA)


def test_every_file_section_and_key_is_known(found: Fixtures) -> None:
    assert not found.faults, "\n".join(found.faults)


def test_our_checkpoints_have_cases_of_every_kind() -> None:
    kinds: dict[str, set[str]] = {}
    for entry in OWN.entries["models/cases"]:
        kinds.setdefault(str(entry.path), set()).add(entry.case["kind"])
    assert len(kinds) == 5 and all({"forward", "generate", "vision"} <= found for found in kinds.values())


def test_our_stages_are_all_three() -> None:
    assert {"stage1", "stage2", "stage3"} <= {
        entry.case["id"].split("/")[-1] for entry in OWN.entries["trainable/stages"]
    }


def test_our_scorers_and_sections_are_all_there() -> None:
    assert len(OWN.entries["scorers"]) >= 61
    assert {decision.section.split("/")[0] for decision in DECISIONS} <= {name.split("/")[0] for name in OWN.entries}
