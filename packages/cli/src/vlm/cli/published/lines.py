"""Read lines that start published scripts: `STRIDE=64 GPUS=8 sh scripts/evaluate_auto.sh CKPT --dynamic`.

Nothing is executed, and no environment is read.
"""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from vlm.core.errors import ConfigError
from vlm.core.home import split_lines

LARGEST = 1 << 20
"""Bytes of a file of lines."""

ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
SHELLS = {"sh", "bash", "source", ".", "nohup", "time", "srun"}


@dataclass(frozen=True)
class ScriptLine:
    """A line that starts a script: variables before it, its name, positional arguments and flags after it."""

    text: str
    script: str
    variables: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the file name of the script."""
        return Path(self.script).name

    def number(self, variable: str, default: int) -> int:
        """Return a variable as a whole number above 0. Raises ConfigError."""
        word = self.variables.get(variable, str(default))
        if not word.isdecimal() or not int(word):
            raise ConfigError(f"{variable}={word}", expected="a whole number above 0")
        return int(word)


@dataclass
class Translation:
    """What a line becomes: commands of ours, what differs and why, and what has no counterpart."""

    line: str
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def read_lines(source: str) -> list[ScriptLine]:
    """Return the lines of a text, or of a file: a published script stands for the line that starts it.

    Raises:
        ConfigError: A file that cannot be read as text, or without any line that starts a script.
    """
    path = Path(source)
    if "\n" not in source and len(source) < 4096 and path.is_file():
        text = _text(path)
        lines = [] if "srun" in text or "torchrun" in text or "deepspeed" in text else _lines(text)
        return lines or [ScriptLine(source, source)]
    lines = _lines(source)
    if not lines:
        raise ConfigError(
            f"no script in {source:.200}", expected="a file, or a line such as: GPUS=8 sh scripts/evaluate_auto.sh CKPT"
        )
    return lines


def _text(path: Path) -> str:
    raw = path.read_bytes()[: LARGEST + 1]
    if len(raw) > LARGEST or b"\0" in raw:
        raise ConfigError(f"{path}: no script", expected=f"text of at most {LARGEST >> 20} MB")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: no UTF-8 text at byte {error.start}", expected="a shell script") from error


def _lines(text: str) -> list[ScriptLine]:
    joined = re.sub(r"\\\r?\n", " ", text)
    return [line for raw in split_lines(joined) if (line := _line(raw.strip())) is not None]


def _line(text: str) -> ScriptLine | None:
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise ConfigError(f"{text:.200}: {error}", expected="a line of a shell") from error
    variables: dict[str, str] = {}
    while words and (found := ASSIGNMENT.fullmatch(words[0])):
        variables[found[1]] = found[2]
        words = words[1:]
    while words and (words[0] in SHELLS or (variables and words[0].startswith("-"))):
        words = words[1:]
    if not words or not words[0].endswith(".sh"):
        return None
    script, *rest = words
    arguments: list[str] = []
    flags: dict[str, str] = {}
    while rest:
        word, *rest = rest
        if not word.startswith("--"):
            arguments.append(word)
        elif "=" in word:
            name, _, flags_value = word[2:].partition("=")
            flags[name] = flags_value
        else:
            flags[word[2:]] = rest.pop(0) if rest and not rest[0].startswith("--") else ""
    return ScriptLine(text, script, variables, arguments, flags)
