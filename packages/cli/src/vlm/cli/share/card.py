"""The model card of a shared model: what it is, how it was trained and on what, how it scored, how it is opened.

>>> write_card(Path("runs/demo/train/demo-sft/model"), "ada/demo")     # doctest: +SKIP
'---\\nlicense: mit\\n...'

Every statement is read from the folders of this machine; what they do not say is said to be unknown. Paths of this
machine stay here.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from vlm.cli.share.lineage import Lineage, lineage_of
from vlm.cli.share.scores import score_lines
from vlm.cli.share.text import shown
from vlm.cli.share.trainings import training_lines
from vlm.cli.show.positions import positions_line
from vlm.models.checkpoint.layout import read_layout
from vlm.models.specs import ModelSpec

IDENTIFIERS = {
    "MIT": "mit",
    "Apache-2.0": "apache-2.0",
    "Llama 2 Community License": "llama2",
    "CC-BY-4.0": "cc-by-4.0",
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
}
"""License in the catalogue -> the hub's identifier."""


def write_card(folder: Path, repo: str, *, to: str | None = None, lost: Path | None = None) -> str:
    """Return the README.md of a model.

    Args:
        folder: The model on this machine.
        repo: Where it goes.
        to: The layout that the shared copy is in; None: that of the folder.
        lost: What the conversion wrote about what the copy lost; it need not exist.
    """
    layout, lineage = read_layout(folder), lineage_of(folder)
    name = to or layout.name
    parts = [
        _front_matter(layout.spec, lineage, name),
        f"# {repo.rpartition('/')[2]}\n",
        _summary(layout.spec, lineage, name),
        "\n".join(["## Training\n", *training_lines(lineage)]),
        "\n".join(["## Scores\n", *score_lines(folder)]),
        "\n".join(["## License\n", *_license_lines(lineage)]),
        "\n".join(["## How to open it\n", *_usage(repo, name, layout.spec)]),
    ]
    for own in filter(None, (folder / "README.md", lost)):
        if not own.is_file():
            continue
        text = re.sub(r"\A---\n.*?\n---\n", "", own.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
        parts.append(f"## What the folder says of itself\n\n{_deeper(text.strip())}\n")
    return "\n".join(parts)


def _front_matter(spec: ModelSpec, lineage: Lineage, layout: str) -> str:
    about: dict[str, Any] = {**_license_keys(lineage), "pipeline_tag": "image-text-to-text"}
    about["library_name"] = "transformers" if layout == "hf" else "vlm"
    if lineage.repos:
        about["base_model"] = list(dict.fromkeys(lineage.repos))
    about["tags"] = ["vlm", spec.family, *(["v2pe"] if spec.strides is not None or spec.stride_choices else [])]
    return f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---\n"


def _license_keys(lineage: Lineage) -> dict[str, str]:
    """Return the hub's keys for the license of the base."""
    named = {entry.license for entry in lineage.base}
    if not named:
        return {"license": "unknown"}
    if len(named) == 1 and (known := IDENTIFIERS.get(next(iter(named)))):
        return {"license": known}
    return {"license": "other", "license_name": " and ".join(sorted(named))}


def _license_lines(lineage: Lineage) -> list[str]:
    lines = [f"- base: {e.name}: {e.license}" + (f". {e.terms}" if e.terms else "") for e in lineage.base]
    if not lines:
        lines = [f"- base: `{lineage.start}`: license unknown, the catalogue of `vlm` does not have it"]
    for file, entry in lineage.data.items():
        known = f"{entry.name}: {entry.license}" if entry else "license unknown, not in the catalogue of `vlm`"
        lines.append(f"- data: `{shown(file)}`: {known}" + (f". {entry.terms}" if entry and entry.terms else ""))
    return [*lines, ""]


def _summary(spec: ModelSpec, lineage: Lineage, layout: str) -> str:
    language = spec.language
    trained = "trained with `vlm`" if lineage.stages else "not trained on the machine that shared it"
    base = ", ".join(e.name for e in lineage.base) or f"`{lineage.start}`"
    lines = [
        f"A vision-language model of the family {spec.family}, {trained}; base: {base}.",
        "",
        "| | |",
        "|---|---|",
        f"| layout | {layout} |",
        f"| language model | {language.kind}, {language.depth} layers, {language.width} wide |",
        f"| {positions_line(spec).replace(': ', ' | ', 1)} |",
    ]
    if spec.stride_choices:
        lines.append(f"| strides in training | {', '.join(f'{stride:g}' for stride in spec.stride_choices)} |")
    return "\n".join([*lines, ""])


def _usage(repo: str, layout: str, spec: ModelSpec) -> list[str]:
    lines = ["```sh", f"vlm download {repo}", f'vlm chat picture.png "What is in the picture?" -m {repo}', "```", ""]
    if layout == "hf":
        lines += [
            "With transformers:",
            "",
            "```python",
            "from transformers import AutoModelForImageTextToText, AutoProcessor",
            "",
            f'model = AutoModelForImageTextToText.from_pretrained("{repo}")',
            f'processor = AutoProcessor.from_pretrained("{repo}")',
            "```",
            "",
        ]
        if spec.strides is not None:
            lines += ["There positions are counted 0, 1, 2, ...: the V2PE strides are read by `vlm` alone.", ""]
    return lines


def _deeper(text: str) -> str:
    """Return Markdown with its headings two levels lower."""
    return re.sub(r"^(#{1,4} )", r"##\1", text, flags=re.MULTILINE)
