"""A griffe extension: put `>>>` examples of docstrings into code blocks, which Markdown would read as quotations."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^[ ]*>>> .*\n?(?:^[ ]*\S.*\n?)*)+", re.MULTILINE)


class DocstringExamples(griffe.Extension):
    """Rewrite the docstring of every object that griffe reads."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object, if it has one."""
        if obj.docstring:
            obj.docstring.value = fence_examples(obj.docstring.value)


def fence_examples(text: str) -> str:
    r"""Return a docstring with each `>>>` example, up to the next empty line, as a fenced block.

    >>> fence_examples("Add.\n\n>>> 1 + 1\n2\n").count("```")
    2
    """
    return EXAMPLE.sub(lambda match: f"```python\n{_clean(match.group())}\n```\n", text)


def _clean(example: str) -> str:
    lines = [re.sub(r"\s*# doctest:.*$", "", line) for line in example.rstrip().splitlines()]
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join(line[margin:] for line in lines)
