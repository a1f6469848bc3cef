"""Write reports of run folders: HTML, Markdown, CSV, JSON, PNG and PDF; and logs of inspect_ai.

write_report([Path("runs/demo")], Path("report/index.html"))          # the page, and report.json beside it
write_report([Path("runs/demo")], Path("report"))                     # every format
"""

import json
from collections.abc import Sequence
from pathlib import Path

from vlm.core.errors import ConfigError
from vlm.core.home import write_atomic
from vlm.eval.report.build import build_report
from vlm.eval.report.data import Report
from vlm.eval.report.render import figures
from vlm.eval.report.render.csv_table import as_csv
from vlm.eval.report.render.inspect_log import log_names, only_evaluation, write_inspect_log
from vlm.eval.report.render.markdown import as_markdown
from vlm.eval.report.render.page import as_html
from vlm.eval.saved.evaluations import Evaluation, find_evaluations

NAMES = {
    "html": "index.html",
    "json": "report.json",
    "md": "report.md",
    "csv": "report.csv",
    "png": "figures",
    "pdf": "figures",
    "eval": "inspect",
}
"""Format -> its file name in a folder; figures and logs of inspect_ai are a folder of files each."""

ON_REQUEST = {"eval"}
"""Formats that a folder has only when they are named: such a log holds every sample."""


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    formats: Sequence[str] = (),
    samples_per_benchmark: int = 60,
    seed: int = 0,
) -> tuple[Report, list[Path]]:
    """Write the report; return it and the files written. Nothing is written unless everything could be made.

    Args:
        folders: Run folders: training runs, evaluations, or both.
        out: With a known suffix this one file, and `report.json` beside a page; any other path is a folder.
        formats: Formats to write beside the file or into the folder; by default a folder has all but `eval`.
        samples_per_benchmark: Most samples of a benchmark that the page shows.
        seed: Seed of the choice of samples.

    Raises:
        DataError: Nothing to report below `folders`, or a damaged file; names it.
        ConfigError: An unknown format.

    >>> report, files = write_report([Path("runs/demo")], Path("report/index.html"))  # doctest: +SKIP
    """
    targets = plan_files(Path(out), formats)
    report = build_report(folders, samples_per_benchmark=samples_per_benchmark, seed=seed)
    made: dict[Path, str | bytes | Evaluation] = {}
    for path, kind in targets:
        if kind == "eval":
            found = find_evaluations(folders)
            made |= (
                {path: only_evaluation(found)} if path.suffix else {path / n: e for n, e in log_names(found).items()}
            )
        elif path.suffix:
            made[path] = _one_file(report, kind)
        else:
            made |= {path / name: data for name, data in figures.figure_files(report, kind).items()}
    for path, content in made.items():
        if isinstance(content, Evaluation):
            write_inspect_log(content, path)
        else:
            write_atomic(path, content)
    return report, list(made)


def plan_files(out: Path, formats: Sequence[str]) -> list[tuple[Path, str]]:
    """Return paths and formats of the files to write; a path without suffix is a folder of figures."""
    kind = "" if out.is_dir() else out.suffix.lower().removeprefix(".")
    wrong = [name for name in [*formats, *filter(None, [kind])] if name not in NAMES]
    if wrong:
        expected = f"one of: {', '.join(NAMES)}; or a folder without a suffix"
        raise ConfigError(f"no report format {wrong[0]!r}", expected=expected)
    if not kind:
        return [
            (out / NAMES[name], name) for name in dict.fromkeys(formats or [n for n in NAMES if n not in ON_REQUEST])
        ]
    beside = dict.fromkeys([*(["json"] if kind == "html" else []), *formats])
    return [(out, kind), *((out.parent / NAMES[name], name) for name in beside if name != kind)]


def _one_file(report: Report, kind: str) -> str | bytes:
    makers = {"html": as_html, "md": as_markdown, "csv": as_csv, "json": as_json}
    binary = {"png": figures.sheet, "pdf": figures.pages}
    return makers[kind](report) if kind in makers else binary[kind](report)


def as_json(report: Report) -> str:
    """Return the tables as sorted, indented JSON without NaN."""
    return json.dumps(report.as_json(), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
