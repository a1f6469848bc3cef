"""The table of docs/performance.md holds the figures of the JSON files in bench/, and no others."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_is_that_of_the_files():
    made = runpy.run_path(str(ROOT / "bench" / "peers_table.py"))
    text = (ROOT / "docs" / "performance.md").read_text("utf-8")
    assert made["page"](text) == text, "run python bench/peers_table.py"
    found = [row for row in made["ROWS"] if made["measured"](row)]
    assert len(found) > 8 and text.count("| not run |") == len(made["ROWS"]) - len(found)
