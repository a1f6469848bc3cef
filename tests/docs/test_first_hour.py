"""The first hour: "Your data in five minutes", then the README's lines from own pictures to a model on a hub.

The home is fresh and outside of the checkout. The start checkpoint is a tiny model under the name of the quickstart's.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from support import local_hub as hub
from support.colors import write_world
from support.typed_lines import BLOCK, ROOT, Typist
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.load import fingerprint, save_model
from vlm.models.specs import load_preset

TYPED = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOKENIZER = ROOT / "tests/golden/data/tokenizers/internlm2"


def readme_lines() -> list[str]:
    """Return the lines of the README about one's own pictures."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [block for block in BLOCK.findall(text) if "--data shapes.jsonl" in block]
    assert len(blocks) == 1
    return [line for line in blocks[0].splitlines() if line.strip()]


def test_the_readme_trains_scores_compares_and_shares() -> None:
    assert [line.split()[1] for line in readme_lines()] == ["train", "eval", "eval", "diff", "push", "download"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_lines_of_tutorial_and_readme_lead_from_pictures_to_a_shared_model(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    write_world(home)
    start = home / "pretrained/quickstart-v2pe"
    save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=1), start, tokenizer=TOKENIZER)
    with hub.serving() as server:
        typist = Typist(home, server.url, hub.WRITE_TOKEN)
        shutil.copytree(TOKENIZER, home / "tokenizer")
        for language, content in TYPED.findall((ROOT / "docs/how-to/your-data.md").read_text(encoding="utf-8")):
            (home / "typed").write_text(content)
            typist.type("sh -eu typed" if language == "sh" else f'"{sys.executable}" typed')
        said = {line.split()[1]: typist.type(line) for line in readme_lines()}
        (trained,) = {file.parent for file in (home / "runs/shapes").rglob("model/config.json")}
        summaries = {
            name: json.loads(next((home / "runs/eval" / name).rglob("summary.json")).read_text())
            for name in ("before", "after")
        }
        before, after = (summaries[name]["metrics"][0] for name in ("before", "after"))
        assert after["value"] >= 90 > before["value"] and after["scored"] == after["total"] == 12
        counts = json.loads((trained.parent / "summary.json").read_text())["ledger"]
        assert counts["in"] == counts["used"] + counts["dropped"] and counts["used"] >= 20
        assert re.search(r"12 items in both", said["diff"])
        back = home / "pretrained/ada/shapes"
        assert server.hub.repos["ada/shapes"].private
        assert fingerprint(back) == fingerprint(trained)
        assert {f.name: f.read_bytes() for f in trained.iterdir()}.items() <= {
            f.name: f.read_bytes() for f in back.iterdir() if f.is_file()
        }.items()
        card = (back / "README.md").read_text()
        assert f"| {after['value']:.2f} [" in card and "12 of 12" in card
        for file in ("shapes.jsonl (JSON lines): 8 rows", "shapes.csv (CSV): 6 rows", "shapes-set (Arrow): 6 rows"):
            assert f"read from {file}" in card, card
        assert "made from `quickstart-v2pe-finetune`" in card
        assert str(home) not in card and str(tmp_path) not in card
        typist.type('vlm chat "picture 0.png" "What color is it?" -m ada/shapes')
        assert "red" in typist.said
