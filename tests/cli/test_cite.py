"""`vlm cite`: BibTeX that balances, with the identifiers of the papers."""

import pytest
from typer.testing import CliRunner

from vlm.cli.commands.cite import app, citations
from vlm.core.errors import UnknownName


def test_every_entry_is_whole_and_names_its_paper():
    found = citations()
    papers = {"v2pe": "2412.09616", "internvl-chat-v1-2": "2312.14238", "convllava": "2405.15738"}
    papers |= {"internvl2_5": "2412.05271", "internvl3": "2504.10479"}
    assert found.keys() == papers.keys()
    for key, entry in found.items():
        assert entry.startswith(f"@misc{{{key},") and entry.endswith("\n}")
        assert entry.count("{") == entry.count("}") and f"{{{papers[key]}}}" in entry


def test_named_systems_alone_are_shown_once_and_an_unknown_one_is_refused():
    shown = CliRunner().invoke(app, ["ConvLLaVA", "v2pe", "convllava"])
    assert shown.exit_code == 0 and shown.stdout.count("@misc") == 2
    assert shown.stdout.index("ConvLLaVA") < shown.stdout.index("V2PE")
    with pytest.raises(UnknownName, match="v2p"):
        CliRunner().invoke(app, ["v2p"], catch_exceptions=False)
