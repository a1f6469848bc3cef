"""Count in docs/reliability.md how many faults were tried and held, from one run of the suite.

pytest -n 2 --dist loadfile --junit-xml=report.xml && python tests/reliability.py report.xml
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"


def named_tests(text: str) -> dict[str, set[str]]:
    """Return the tests that each section of a page names, as `path` or `path::function`."""
    found: dict[str, set[str]] = {}
    section = ""
    for line in text.split("\n"):
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| "):
            found.setdefault(section, set()).update(re.findall(r"`(tests/[^`]+\.py(?:::\w+)?)`", line))
    return {name: tests for name, tests in found.items() if tests}


def outcomes(report: Path) -> list[tuple[str, str, str]]:
    """Return (path, path::function, outcome) of each case in a JUnit report."""
    cases = []
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "held"
        path = case.get("classname", "").replace(".", "/") + ".py"
        cases.append((path, f"{path}::{case.get('name', '').split('[')[0]}", outcome))
    return cases


def main() -> int:
    """Write the table; the exit code is 1 where a test failed or was not run."""
    text, cases = PAGE.read_text(encoding="utf-8"), outcomes(Path(sys.argv[1]))
    rows = ["| what | cases tried | held | skipped here |", "|---|--:|--:|--:|"]
    total: Counter[str] = Counter()
    lost = []
    for section, names in named_tests(text).items():
        counts = Counter(outcome for path, function, outcome in cases if {path, function} & names)
        lost += [name for name in names if not any(name in case[:2] for case in cases)]
        total += counts
        tried = counts["held"] + counts["failed"]
        rows.append(f"| {section} | {tried:,} | {counts['held']:,} | {counts['skipped']} |")
    tried = total["held"] + total["failed"]
    rows.append(f"| all | {tried:,} | {total['held']:,} | {total['skipped']} |")
    before, rest = text.split(BEGIN)
    table = "\n".join(rows)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(table)
    if lost:
        print("not in the report:", *sorted(lost), sep="\n  ")
    return int(total["failed"] > 0 or bool(lost))


if __name__ == "__main__":
    sys.exit(main())
