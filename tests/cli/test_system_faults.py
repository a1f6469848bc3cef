"""Full disks, folders without permission, closed pipes, poor terminals: a path, a reason, a fix, and no traceback."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import report_run

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"


class Forks:
    """`vlm` commands in forks of one process, which has torch imported: a start costs little."""

    def __init__(self, home: Path):
        self.home, self.n = home, 0
        script = Path(__file__).parents[1] / "support" / "fork_eval.py"
        env = {**os.environ, "VLM_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, str(script)], stdin=pipe, stdout=pipe, text=True, env=env)
        assert self.ask() == "ready"

    def ask(self, **request: Any) -> Any:
        if request:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def run(self, words: list[str], **limits: int) -> tuple[int, str]:
        """Exit code, and what was said on both streams."""
        self.n += 1
        log = self.home / f"{self.n}.log"
        pid = self.ask(arguments=words, log=str(log), **limits)
        code = os.waitstatus_to_exitcode(self.ask(wait=pid))
        for _ in range(100):  # `cat` writes the rest
            if code == 0 or "fix: " in log.read_text():
                break
            time.sleep(0.05)
        return code, log.read_text()


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Commands in a home with a tiny checkpoint, a miniature and a run to report."""
    from vlm.eval.mini import make_mini
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.specs import load_preset

    with tempfile.TemporaryDirectory(prefix="vlm-test-") as name:
        home = Path(name)
        model = build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0)
        save_model(model, home / "pretrained" / "tiny", tokenizer=TOKENIZER)
        make_mini("POPE", home / "dataset" / "mini" / "POPE")
        report_run.make_run(home / "run")
        made = Forks(home)
        try:
            yield made
        finally:
            made.process.stdin.close()
            made.process.wait()
            made.process.stdout.close()


def vlm(*words: str, home: Path, **env: str) -> subprocess.CompletedProcess:
    """Run the command as a user would."""
    line = [sys.executable, "-m", "vlm.cli.main", *words]
    environment = {**os.environ, "VLM_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200", **env}
    return subprocess.run(
        line, env=environment, capture_output=True, text=True, errors="replace", timeout=300, cwd=home
    )


COMMANDS = {
    "eval": ("eval", "pope", "--mini", "--model", "tiny", "--out", "OUT"),
    "report": ("report", "run", "-o", "OUT/index.html"),
    "weights make": ("weights", "make", "tiny-internvl2", "-o", "OUT/made", "--tokenizer", str(TOKENIZER)),
    "weights convert": ("weights", "convert", "tiny", "--to", "internvl", "-o", "OUT/converted"),
    "data mini": ("data", "mini", "mmmu", "--out", "OUT/mini"),
}


def words_of(name: str, out: Path) -> list[str]:
    return [word.replace("OUT", str(out)) for word in COMMANDS[name]]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_cannot_grow_ends_with_path_reason_and_fix(name: str, forks: Forks, tmp_path: Path) -> None:
    code, said = forks.run(words_of(name, tmp_path / "out"), file_size=200)
    assert code == 7, said
    assert "Traceback" not in said and "(EFBIG)" in said and "fix: allow larger files" in said
    assert str(tmp_path / "out") in said
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith((".html", "summary.json", ".safetensors", ".parquet"))]
    code, said = forks.run(words_of(name, tmp_path / "out"))
    assert code == 0, said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 kB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_ends_with_path_reason_and_fix(name: str, forks: Forks, small_disk: Path) -> None:
    (small_disk / "others").write_bytes(b"x" * 40_000)
    code, said = forks.run(words_of(name, small_disk / "out"))
    assert code == 7, said
    assert "Traceback" not in said and "fix: " in said
    assert "(ENOSPC)" in said or "free at" in said  # `convert` looks before it writes
    assert str(small_disk) in said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_without_permission_is_named(name: str, forks: Forks, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    code, said = forks.run(words_of(name, out), plain_user=1)
    out.chmod(0o755)
    assert code == 1, said
    assert str(out) in said and "(EACCES)" in said and "fix: change who may use" in said
    assert "Traceback" not in said and "cannot write" not in said and list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["eval", "weights convert"])
def test_weights_that_cannot_be_read_are_no_disk_that_cannot_be_written(
    name: str, forks: Forks, tmp_path: Path
) -> None:
    weights = forks.home / "pretrained/tiny/model.safetensors"
    weights.chmod(0)
    try:
        code, said = forks.run(words_of(name, tmp_path / "out"), plain_user=1)
    finally:
        weights.chmod(0o644)
    assert code == 1, said
    assert f"{weights}: Permission denied (EACCES)" in said and "Traceback" not in said
    assert "cannot write" not in said and "download" not in said


@pytest.mark.parametrize("umask", [0o027, 0o002])
def test_written_files_have_the_permissions_that_any_new_file_has(umask: int, forks: Forks, tmp_path: Path) -> None:
    for name in COMMANDS:
        code, said = forks.run(words_of(name, tmp_path / "out"), umask=umask)
        assert code == 0, said
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != ".lock"]
    modes = {str(path): oct(stat.S_IMODE(path.stat().st_mode)) for path in files}
    assert {path: mode for path, mode in modes.items() if mode != oct(0o666 & ~umask)} == {}
    assert {".safetensors", ".html", ".jsonl", ".json"} <= {path.suffix for path in files}


def test_adapters_have_the_usual_permissions(tmp_path: Path) -> None:
    import torch

    from vlm.models.checkpoint.safetensors_io import save_tensors

    before = os.umask(0o027)
    try:
        save_tensors({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640


def test_a_pipe_that_closes_ends_the_command_in_silence(tmp_path: Path) -> None:
    environment = {**os.environ, "VLM_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1", "COLUMNS": "300"}
    for words in ("list benchmarks", "list recipes --json", "recipe show v2pe-256k", "list data"):
        line = f"{sys.executable} -m vlm.cli.main {words} | head -n 1"
        done = subprocess.run(
            ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        assert done.stdout.count("\n") == 1 and done.stderr == "", done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_characters_shows_them_escaped(encoding: str, tmp_path: Path) -> None:
    home = tmp_path
    done = vlm("list", "recipes", home=home, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    done = vlm("report", "no-such-ü-模型", home=home, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 3 and "no such run folder" in done.stderr and "Traceback" not in done.stderr


def ended_by(statement: str) -> subprocess.CompletedProcess:
    code = f"import errno, vlm.cli.main as m\ndef stop(): {statement}\nm.app = stop\nm.main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_a_fault_of_ours_says_so_above_its_traceback() -> None:
    for statement in ("raise KeyError('x')", "raise OSError('a library says so')", "raise RecursionError"):
        done = ended_by(statement)
        assert done.returncode == 1
        first, _, rest = done.stderr.partition("\n")
        assert first.startswith("this is a fault of vlm") and "Traceback" in rest and "report it" in first


@pytest.mark.parametrize(
    ("statement", "code", "said"),
    [
        ("raise OSError(errno.ENOSPC, 'No space left on device', '/a/b')", 7, "/a/b: No space left on device (ENOSPC)"),
        ("raise PermissionError(errno.EACCES, 'Permission denied', '/a')", 1, "/a: Permission denied (EACCES)"),
        ("raise OSError(errno.EROFS, 'Read-only file system', '/a')", 1, "on a disk that can be written to"),
        ("raise OSError(errno.EMFILE, 'Too many open files')", 7, "ulimit -n"),
        (
            "raise FileNotFoundError(errno.ENOENT, 'No such file', '/a\\x1b[31m')",
            3,
            "/a\\x1b[31m: No such file (ENOENT)",
        ),
        ("raise OSError(errno.EIO, 'Input/output error', '/a')", 1, "/a: Input/output error (EIO)"),
        ("open('/proc/self/mem/x')", 3, "/proc/self/mem/x: Not a directory (ENOTDIR)"),
        ("open('x' * 300)", 2, "(ENAMETOOLONG)"),
        ("raise MemoryError", 7, "the memory of this machine is used up"),
    ],
)
def test_errors_of_the_system_have_path_code_and_fix(statement: str, code: int, said: str) -> None:
    done = ended_by(statement)
    assert done.returncode == code and said in done.stderr and "fix: " in done.stderr
    assert "Traceback" not in done.stderr and "\x1b[31m:" not in done.stderr


def test_json_is_one_value_whatever_the_terminal(tmp_path: Path) -> None:
    done = vlm("list", "recipes", "--json", home=tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert json.loads(done.stdout)
