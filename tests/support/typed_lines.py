"""Lines of the documentation, typed in their order in a home outside of the checkout."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def lines_of(page: str, section: str = "") -> list[str]:
    """Return the command lines of a page of docs/, or of one section of it; continued lines are joined."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = [block.replace("\\\n", " ") for block in BLOCK.findall(text)]
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip() and line[0] != "#"]


class Typist:
    """Types lines in a folder; `said` is all that the last one printed."""

    def __init__(self, home: Path, endpoint: str, token: str):
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.said = home, ""
        bin_folder = home.parent / "bin"
        bin_folder.mkdir(exist_ok=True)
        (bin_folder / "vlm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vlm.cli.main "$@"\n')
        (bin_folder / "vlm").chmod(0o755)
        self.env = os.environ | {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "VLM_HOME": str(home),
            "HOME": str(home.parent),
            "HF_HOME": str(home.parent / "hf"),
            "HF_ENDPOINT": endpoint,
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",
            "COLUMNS": "110",
        }

    def type(self, line: str) -> str:
        """Run a line with a shell; return its output. AssertionError with all it said when it fails."""
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.home, env=self.env, capture_output=True, text=True, timeout=1200, check=False
        )
        self.said = done.stdout + done.stderr
        assert done.returncode == 0, f"{line}\n{self.said}"
        assert "Traceback" not in self.said, f"{line}\n{self.said}"
        return self.said
