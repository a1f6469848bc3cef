"""Read a launch script (.sh) without running it: its variables, and the command that it starts.

It understands assignments, `${X:-default}`, `$((a / b))`, arrays, continued lines, quotes, comments, loops and
conditions taken once, `basename "$0" .sh`; srun, torchrun, deepspeed, accelerate and python lines. Nothing is executed
and no environment is read, so an unset variable is empty.
"""

import ast
import operator
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vlm.core.errors import ConfigError
from vlm.core.home import split_lines

TOKEN = re.compile(
    r"""(?P<space>(?:[ \t]|\\\r?\n)+)|(?P<comment>\#[^\n]*)|(?P<end>\r?\n|;;|;|&&|\|\||\||&(?![>\d]))
    |(?P<redirect>&?\d*(?:>>|>|<)(?:&\d+)?)|(?P<bracket>[()])
    |(?P<word>(?:\\.|'[^']*'|"(?:\\.|\$\((?:[^()]|\([^()]*\))*\)|[^"\\])*"
      |\$\(\((?:[^()]|\([^()]*\))*\)\)|\$\((?:[^()]|\([^()]*\))*\)|\$\{(?:[^{}]|\$\{[^{}]*\})*\}
      |\$|(?<!^)\#|[^\s;|&()<>'"\\$])+)""",
    re.X | re.S,
)
EXPANSION = re.compile(
    r"""\\(?P<escaped>.)|(?P<quoted>'[^']*')|\$\(\((?P<sum>(?:[^()]|\([^()]*\))*)\)\)
    |\$\((?P<command>(?:[^()]|\([^()]*\))*)\)|\$\{(?P<braced>(?:[^{}]|\$\{[^{}]*\})*)\}
    |\$(?P<name>[A-Za-z_]\w*|[0-9@*\#?$!])|(?P<double>")""",
    re.X | re.S,
)
BRACED = re.compile(r"\#?(?P<name>\w+|[@*\#?])(?:\[[^\]]*\])?(?P<how>:?[-=+?])?(?P<rest>.*)", re.S)
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.S)
KEYWORDS = {"if", "then", "else", "elif", "fi", "do", "done", "while", "until", "!", "{", "}", "time", "esac", "nohup"}
DECLARING = {"export", "local", "readonly", "declare"}
IDLE_COMMANDS = {"echo", "printf", "[", "[[", "test", "set", "shift"}
"""Commands that pass nothing on."""
NAMES_ONLY = re.compile(r"-{1,2}(output_dir|outputs?-dir|out-dir|job-name|J|o|e|output|error|logging_dir|run_name)\b=?")
"""Options whose value only names a folder, a file or a job."""
RUNNERS = {"srun", "torchrun", "deepspeed", "accelerate", "python", "python3"}
SUMS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: int(a / b),
    ast.Mod: operator.mod,
}


@dataclass
class Script:
    """Content of a launch script.

    Attributes:
        path: of the script.
        variables: their values at the end.
        unforwarded: variables that a caller may set (`${X:-...}`, `$1`) and that reach the program at most as the name
            of a folder or job.
        idle: variables that reach no command.
        runner: command that starts the program, such as `torchrun`.
        program: Python file or module.
        launch: options of the runner, without dashes.
        flags: arguments of the program, without dashes.
        repeated: arguments that are given twice.
        broken: parts that make no sense.
    """

    path: Path
    variables: dict[str, str] = field(default_factory=dict)
    unforwarded: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    runner: str = ""
    program: str = ""
    launch: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def gpus(self) -> int | None:
        """Processes that the launcher starts, None if it names no number."""
        if (tasks := number(self.launch.get("ntasks") or self.launch.get("n"))) is not None:
            return tasks
        each = number(self.launch.get("nproc_per_node") or self.launch.get("nproc-per-node"))
        each = number(self.launch.get("num_gpus")) if each is None else each
        nodes = number(self.launch.get("nnodes") or self.launch.get("num_nodes")) or 1
        return each * nodes if each is not None else number(self.variables.get("GPUS"))


def number(text: str | None) -> int | None:
    """Return a whole number, None for other text."""
    return int(text) if text is not None and text.isdigit() else None


class ShellReader:
    """Variables of a script while it is read. `parts[x]`: the variables that x was made of."""

    def __init__(self, path: Path):
        self.script, self.values = Script(path), {"0": str(path)}
        self.parts: dict[str, set[str]] = {}
        self.taken: set[str] = set()
        self.reached: set[str] = set()
        self.forwarded: set[str] = set()

    def expand(self, raw: str, used: set[str]) -> str:
        """Replace the variables of a word by their values, quotes kept; `used` receives their names."""

        def put(match: re.Match[str]) -> str:
            if match["sum"] is not None:
                return self.sum(match["sum"], used)
            if match["command"] is not None:
                return self.command(match["command"], used)
            if match["braced"] is not None:
                return self.braced(match["braced"], used)
            return match[0] if match["name"] is None else self.value(match["name"], used)

        return EXPANSION.sub(put, raw)

    def value(self, name: str, used: set[str]) -> str:
        """Return the value of a variable, escaped for double quotes; an unset one is empty."""
        used.add(name)
        return re.sub(r'(["\\])', r"\\\1", self.values.get(name, ""))

    def braced(self, body: str, used: set[str]) -> str:
        """Return the value of `${body}`, such as `${X:-default}`."""
        match = BRACED.fullmatch(body)
        if match is None:
            return ""
        value, how = self.value(match["name"], used), match["how"] or ""
        if how.endswith("+"):
            return self.expand(match["rest"], used) if value else ""
        if how and not value:
            other = self.expand(match["rest"], used)
            return other[1:-1] if other[:1] == other[-1:] == '"' and len(other) > 1 else other
        return value

    def command(self, text: str, used: set[str]) -> str:
        """Return the value of `$(basename "$0" .sh)`; for other commands a word that names them."""
        words = shlex.split(self.expand(text, used))
        if words[:1] == ["basename"] and len(words) > 1:
            return Path(words[1]).name.removesuffix(words[2] if len(words) > 2 else "")
        return "<" + "_".join(words) + ">"

    def sum(self, text: str, used: set[str]) -> str:
        """Return the value of `$((text))`; 0 where it has none, which is noted."""

        def work(node: ast.AST) -> int:
            if isinstance(node, ast.BinOp) and type(node.op) in SUMS:
                return SUMS[type(node.op)](work(node.left), work(node.right))
            if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
                return -work(node.operand)
            if isinstance(node, ast.Name):
                return int(self.value(node.id, used) or 0)
            if isinstance(node, ast.Constant) and isinstance(node.value, int):
                return node.value
            raise ValueError(f"not understood: {ast.dump(node)}")

        try:
            return str(work(ast.parse(self.expand(text, used).strip(), mode="eval").body))
        except (SyntaxError, ValueError, ZeroDivisionError):
            self.script.broken.append(f"$(({text})) has no value")
            return "0"

    def words(self, raw: list[str], used: set[str]) -> list[str]:
        """Return the words of a command, split where an unquoted variable has blanks."""
        found = []
        for word in raw:
            try:
                found += shlex.split(self.expand(word, used))
            except ValueError:
                self.script.broken.append(f"quotes do not close: {word:.60}")
        return found

    def assign(self, name: str, raw: str) -> None:
        """Set a variable, and note what it was made of."""
        used: set[str] = set()
        self.values[name] = " ".join(self.words([raw], used)) if raw else ""
        self.parts[name] = self.parts.get(name, set()) | used - {name}
        if name in used or used & set("123456789@*"):
            self.taken.add(name)

    def statement(self, raw: list[str]) -> None:
        """Read one simple command: assignments, or something that runs."""
        while raw and raw[0] in KEYWORDS:
            raw = raw[1:]
        if raw[:1] == ["for"] and len(raw) > 3:
            return self.assign(raw[1], raw[3])
        if not raw or raw[0] == "case" or raw[0].startswith("-"):
            return None
        declared = raw[0] in DECLARING
        raw = raw[1:] if declared else raw
        own = set()
        while raw and (match := ASSIGNMENT.fullmatch(raw[0])):
            self.assign(match[1], match[2])
            own.add(match[1])
            raw = raw[1:]
        if declared or raw:  # into the environment of what runs
            self.reached |= own
            self.forwarded |= own
        if raw:
            used: set[str] = set()
            words = self.words(raw, used)
            if words and words[0] not in IDLE_COMMANDS:
                self.reached |= used
            if words and Path(words[0]).name in RUNNERS and self.started(words):
                for before, word in zip(["", *raw], raw, strict=False):
                    if not NAMES_ONLY.fullmatch(before) and not NAMES_ONLY.match(word):
                        self.expand(word, self.forwarded)

    def started(self, words: list[str]) -> bool:
        """Note the script's main command, the last that runs a Python program; return False if this runs none."""
        at = next((i for i, w in enumerate(words) if w.endswith(".py")), None)
        if at is None:
            modules = [i + 1 for i, w in enumerate(words[:-1]) if w == "-m" and not words[i + 1].startswith("torch.")]
            at = modules[-1] if modules else None
        if at is None:
            return False
        self.script.runner, self.script.program = Path(words[0]).name, words[at]
        self.script.launch, _ = options(words[1:at])
        self.script.flags, self.script.repeated = options(words[at + 1 :])
        return True

    def behind(self, names: set[str]) -> set[str]:
        """Return variables with all that they were made of."""
        found, left = set(names), list(names)
        while left:
            more = self.parts.get(left.pop(), set()) - found
            found |= more
            left += more
        return found


def options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Read `--name value`, `--name=value`, `--name` (True) and `-n value`; return them, and the names given twice."""
    found: dict[str, str] = {}
    repeated, name = [], ""
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-[\d.].*", word):
            name, equals, value = word.lstrip("-").partition("=")
            repeated += [name] if name in found else []
            found[name] = value if equals else "True"
            name = "" if equals else name
        elif name:
            found[name] = word if found[name] == "True" else f"{found[name]} {word}"
    return found, repeated


def read_script(path: Path) -> Script:
    """Read a script. Raises ConfigError where there is no such file, or it starts no Python program."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    text, shell = path.read_text(encoding="utf-8", errors="replace"), ShellReader(path)
    for i, line in enumerate(split_lines(text), 1):
        if re.search(r"\\[ \t]+$", line):
            shell.script.broken.append(f"line {i}: a blank after the backslash ends the command there")
    raw: list[str] = []
    held: list[str] = []  # the words before an array whose parts are being read
    array = skip = False
    for match in TOKEN.finditer(re.sub(r"\\\r?\n", "", text) + "\n"):
        kind, token = match.lastgroup, match[0]
        if kind == "bracket" and token == "(" and raw and raw[-1].endswith("="):
            held, raw, array = raw, [], True
        elif array and kind == "bracket":
            parts = " ".join(word.strip("\"'") for word in raw)
            raw, array = [*held[:-1], f'{held[-1]}"{parts}"'], False
        elif (kind == "end" and not array) or kind == "bracket":
            shell.statement(raw)
            raw = []
        elif kind == "word":
            raw, skip = (raw if skip else [*raw, token]), False
        elif kind == "redirect":
            skip = "&" not in token.lstrip("&")
    script = shell.script
    if not script.program:
        raise ConfigError(f"{path}: no command starts a Python program", expected=f"one of {', '.join(RUNNERS)}")
    reached, forwarded = shell.behind(shell.reached), shell.behind(shell.forwarded)
    script.variables = {k: v for k, v in shell.values.items() if k != "0"}
    script.idle = sorted(name for name in shell.parts if name not in reached)
    script.unforwarded = sorted(shell.taken - forwarded - set(script.idle))
    return script
