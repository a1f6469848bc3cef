"""Full disks, folders without permission, closed pipes, poor terminals: a path, a reason, a fix, and no traceback."""

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import report_run

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"
NOBODY = 65534


def vlm(*words: str, home: Path, before: Callable[[], None] | None = None, **env: str) -> subprocess.CompletedProcess:
    """Run the command as a user would; `before` runs in its process first."""
    line = [sys.executable, "-m", "vlm.cli.main", *words]
    environment = {**os.environ, "VLM_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200", **env}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, preexec_fn=before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a tiny checkpoint, a miniature and a run to report."""
    from vlm.eval.mini import make_mini
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.specs import load_preset

    home = tmp_path_factory.mktemp("home")
    model = build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0)
    save_model(model, home / "pretrained" / "tiny", tokenizer=TOKENIZER)
    make_mini("POPE", home / "dataset" / "mini" / "POPE", n=2)
    report_run.make_run(home / "run")
    return home


COMMANDS = {
    "eval": ("eval", "pope", "--mini", "--model", "tiny", "--out", "OUT"),
    "eval of another miniature": ("eval", "chartqa", "--mini", "--model", "tiny", "--out", "OUT"),
    "report": ("report", "run", "-o", "OUT/index.html"),
    "weights make": ("weights", "make", "tiny-internvl2", "-o", "OUT/made", "--tokenizer", str(TOKENIZER)),
    "weights convert": ("weights", "convert", "tiny", "--to", "internvl", "-o", "OUT/converted"),
    "data mini": ("data", "mini", "mmmu-val", "--out", "OUT/mini"),
    "data tokenizer": ("data", "tokenizer", "text.jsonl", "--out", "OUT/tokenizer", "--vocab-size", "300"),
}


def words_of(name: str, out: Path) -> list[str]:
    return [word.replace("OUT", str(out)) for word in COMMANDS[name]]


def left_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) if folder.exists() else []


@pytest.mark.parametrize("name", ["eval", "report", "weights make", "weights convert", "data mini"])
def test_a_file_that_cannot_grow_ends_with_path_reason_and_fix(name: str, home: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    done = vlm(*words_of(name, tmp_path / "out"), home=home, before=small_files)
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr and "(EFBIG)" in done.stderr and "fix: allow larger files" in done.stderr
    assert str(tmp_path / "out") in done.stderr
    finished = [f for f in left_below(tmp_path / "out") if f.endswith((".html", "summary.json", ".safetensors"))]
    assert not finished
    again = vlm(*words_of(name, tmp_path / "out"), home=home)
    assert again.returncode == 0, again.stderr


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


@pytest.mark.parametrize("name", ["eval", "report", "weights make", "weights convert", "data mini"])
def test_a_full_disk_ends_with_path_reason_and_fix(name: str, home: Path, small_disk: Path) -> None:
    (small_disk / "others").write_bytes(b"x" * 36_000)
    done = vlm(*words_of(name, small_disk / "out"), home=home)
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr and "fix: " in done.stderr
    assert "(ENOSPC)" in done.stderr or "free at" in done.stderr  # `convert` looks before it writes
    assert str(small_disk) in done.stderr


def as_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def open_home(home: Path) -> Iterator[Path]:
    """The home in a place where everybody may read, and nobody but its owner may write."""
    folder = Path(f"/tmp/vlm-test-{os.getpid()}")
    shutil.copytree(home, folder)
    subprocess.run(["chmod", "-R", "a+rX,go-w", str(folder)], check=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def may_run_as_nobody() -> bool:
    probe = [sys.executable, "-c", "import vlm.cli.main"]
    return not subprocess.run(
        probe, preexec_fn=as_nobody, capture_output=True, env={**os.environ, "HOME": "/"}
    ).returncode


@needs_root
@pytest.mark.parametrize("name", ["eval", "report", "weights make", "weights convert", "data mini"])
def test_a_folder_without_permission_is_named(name: str, open_home: Path) -> None:
    if not may_run_as_nobody():
        pytest.skip("other users cannot run this Python")
    done = vlm(*words_of(name, open_home / "out"), home=open_home, before=as_nobody, HOME="/")
    assert done.returncode == 1, done.stderr
    assert f"{open_home}/out" in done.stderr and "(EACCES)" in done.stderr and "fix: " in done.stderr
    assert "Traceback" not in done.stderr and "cannot write" not in done.stderr


@needs_root
def test_weights_that_cannot_be_read_are_not_called_a_disk_that_cannot_be_written(open_home: Path) -> None:
    if not may_run_as_nobody():
        pytest.skip("other users cannot run this Python")
    weights = open_home / "pretrained/tiny/model.safetensors"
    weights.chmod(0o600)
    (open_home / "out").mkdir()
    (open_home / "out").chmod(0o777)
    for name in ("eval", "weights convert"):
        done = vlm(*words_of(name, open_home / "out"), home=open_home, before=as_nobody, HOME="/")
        assert done.returncode == 1, done.stderr
        assert f"{weights}: Permission denied (EACCES)" in done.stderr and "Traceback" not in done.stderr
        assert "cannot write" not in done.stderr and "download" not in done.stderr


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_written_files_have_the_permissions_that_any_new_file_has(umask: int, home: Path, tmp_path: Path) -> None:
    def set_umask() -> None:
        os.umask(umask)

    for name in ("weights make", "weights convert", "eval", "report"):
        done = vlm(*words_of(name, tmp_path / "out"), home=home, before=set_umask)
        assert done.returncode == 0, done.stderr
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name not in (".lock",)]
    wrong = {str(path): oct(stat.S_IMODE(path.stat().st_mode)) for path in files}
    wrong = {path: mode for path, mode in wrong.items() if mode != oct(0o666 & ~umask)}
    assert not wrong and any(path.suffix == ".safetensors" for path in files)


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
    environment = {**os.environ, "VLM_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    for words in ("list benchmarks", "list recipes --json", "recipe show v2pe-256k", "list data"):
        line = f"{sys.executable} -m vlm.cli.main {words} | head -n 1"
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=120)
        assert done.stdout.count("\n") == 1 and done.stderr == "", done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_characters_shows_them_escaped(encoding: str, home: Path, tmp_path: Path) -> None:
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


def test_json_is_one_value_whatever_the_terminal(home: Path) -> None:
    done = vlm("list", "recipes", "--json", home=home, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert json.loads(done.stdout)
