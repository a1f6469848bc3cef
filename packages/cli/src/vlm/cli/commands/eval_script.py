"""`vlm eval from-script`: the published evaluation lines as commands of ours."""

from dataclasses import asdict
from typing import Annotated

import typer

from vlm.cli.show.say import say_json
from vlm.cli.show.translation import show_translations


def from_script(
    source: Annotated[str, typer.Argument(metavar="LINE|FILE", help="A line in quotes, or a file of lines.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Translate published evaluation lines into `vlm eval`, and say what has no counterpart. Nothing is executed.

    \b
    vlm eval from-script "STRIDE=64 GROUP=40 GPUS_PER_TASK=2 sh scripts/evaluate_longvqa.sh pretrained/V2PE-32K
      --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64"
    """
    from vlm.cli.published.evaluation import translate
    from vlm.cli.published.lines import read_lines

    found = [translate(line) for line in read_lines(source)]
    if as_json:
        say_json([asdict(one) for one in found])
    else:
        show_translations(found)
