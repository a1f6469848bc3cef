"""Run every test that docs/reliability.md names, and write how many faults were tried and held into the page.

python tests/reliability.py            # some minutes
"""

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"


def named_tests(text: str) -> dict[str, list[str]]:
    """Return the tests that each section of a page names, as `path` or `path::function`."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in text.split("\n"):
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| "):
            found.setdefault(section, []).extend(re.findall(r"`(tests/[^`]+\.py(?:::\w+)?)`", line))
    return {name: tests for name, tests in found.items() if tests}


def counted(names: list[str], report: Path) -> Counter[str]:
    """Run tests; return how many cases passed, failed and were skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", f"--junit-xml={report}"]
    subprocess.run([*command, *dict.fromkeys(names)], cwd=ROOT, check=False)
    result: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        result["failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "held"] += 1
    return result


def main() -> int:
    """Run them all and write the table."""
    text = PAGE.read_text(encoding="utf-8")
    rows = ["| what | tried | held | not to be tried here |", "|---|--:|--:|--:|"]
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for section, names in named_tests(text).items():
            counts = counted(names, Path(folder) / "report.xml")
            total += counts
            tried = counts["held"] + counts["failed"]
            rows.append(f"| {section} | {tried:,} | {counts['held']:,} | {counts['skipped']} |")
    tried = total["held"] + total["failed"]
    rows.append(f"| **all** | **{tried:,}** | **{total['held']:,}** | {total['skipped']} |")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    table = "\n".join(rows)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")
    print(table)
    return int(total["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
