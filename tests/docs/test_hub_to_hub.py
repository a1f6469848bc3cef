"""Each line of "From the hub to the hub" is typed, against a local hub with tiny models under the published names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support import local_hub as hub
from support.releases import release_repos
from support.typed_lines import Typist, lines_of
from vlm.models.checkpoint.load import fingerprint

COLORS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 70, 220), "yellow": (240, 220, 50)}
SYSTEMS = {"V2PE-32K": "pets-v2pe", "InternVL2-2B": "pets-internvl2", "ConvLLaVA": "pets-convllava"}


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with hub.serving() as server:
        server.hub.repos |= release_repos()
        yield server


def write_pets(home: Path) -> None:
    """Draw the pictures of the page and write its tables."""
    home.mkdir(parents=True)
    rows = []
    for number in range(24):
        name, color = list(COLORS.items())[number % 4]
        Image.new("RGB", (64 + number, 64), color).save(home / f"pet {number}.png")
        rows.append(f"pet {number}.png,What color is it?,{name}\n")
    (home / "pets.csv").write_text("image,question,answer\n" + "".join(rows[:20]))
    (home / "pets-test.csv").write_text("image,question,answer\n" + "".join(rows[20:]))
    Image.new("RGB", (80, 80), "gray").save(home / "cat.png")


def test_the_page_has_the_same_steps_for_each_system() -> None:
    for section in SYSTEMS:
        verbs = [line.split()[1] for line in lines_of("hub-to-hub.md", section)]
        assert verbs == ["download", "chat", "eval", "train", "eval", "push", "download"], section


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("section", SYSTEMS)
def test_each_line_of_the_page_does_what_it_says(server: Any, tmp_path: Path, section: str) -> None:
    home, run = tmp_path / "a home", SYSTEMS[section]
    write_pets(home)
    typist = Typist(home, server.url, hub.WRITE_TOKEN)
    for line in lines_of("hub-to-hub.md", section):
        typist.type(line)
    trained = next((home / "runs" / run).rglob("model/config.json")).parent
    back = home / "pretrained/ada" / run
    card = (back / "README.md").read_text()
    assert "Samples: " in card and "of 4 |" in card and "exact" in card
    if section != "InternVL2-2B":
        assert fingerprint(back) == fingerprint(trained)
    typist.type(f"vlm weights diff ada/{run} {run}")
    assert "equal: all tensors" in typist.said
    typist.type(f'vlm chat cat.png "Why?" -m ada/{run}')
