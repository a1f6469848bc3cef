"""`vlm clean`: what may go is shown and removed, everything that is not provably ours stays."""

import json
import shutil
from pathlib import Path

import pytest

from vlm.cli import main as command
from vlm.cli.clean import disk_use, find_leftovers, remove
from vlm.core.home import locked
from vlm.core.sample.index import LineIndex

TEN = "x" * 10


def write(path: Path, text: str = TEN) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def stage(folder: Path, *, exported: bool, steps: tuple[int, ...] = (5, 10)) -> Path:
    """A stage as `vlm train` leaves it, with checkpoints of some bytes."""
    write(folder / "recipe.json", "{}")
    if exported:
        write(folder / "model/config.json", "{}")
    for step in steps:
        path = folder / f"checkpoints/step-{step:08d}"
        write(path / "mp_rank_00_model_states.pt")
        files = {"mp_rank_00_model_states.pt": {"bytes": 10, "sha256": "0" * 64}}
        state = {"step": step, "ledger": None, "processes": 1}
        write(path / "manifest.json", json.dumps({"state": state, "files": files}))
    write(folder / "checkpoints/latest", "step-00000010")
    return folder


def kinds(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for left in find_leftovers(root).leftovers:
        found.setdefault(left.kind, []).append(left.path.relative_to(root).as_posix())
    return {kind: sorted(paths) for kind, paths in found.items()}


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """One of each kind that may go, beside what must stay."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    write(tmp_path / "pretrained/A/.lock", "")
    write(tmp_path / "pretrained/A/.partial/source.json", "[]")
    write(tmp_path / "pretrained/A/.partial/0/model.safetensors.part")
    write(tmp_path / "pretrained/A/model.safetensors")
    write(tmp_path / "dataset/d/train.jsonl", '{"id": 1}\n')
    LineIndex(tmp_path / "dataset/d/train.jsonl")
    write(tmp_path / "dataset/d/.lock", "")
    write(tmp_path / "dataset/d/.train.jsonl.123.tmp")
    stage(tmp_path / "runs/r/train/done", exported=True)
    stage(tmp_path / "runs/r/train/going", exported=False)
    write(tmp_path / "runs/r/train/going/checkpoints/.step-00000015.tmp/half.pt")
    write(tmp_path / "runs/eval/.judge/reply.json", "{}")
    return tmp_path


GONE = {
    "partial": ["pretrained/A/.partial"],
    "checkpoints": [f"runs/r/train/done/checkpoints/step-{n:08d}" for n in (5, 10)],
    "temporary": ["dataset/d/.train.jsonl.123.tmp", "runs/r/train/going/checkpoints/.step-00000015.tmp"],
}


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["vlm", "clean", *words])
    with pytest.raises(SystemExit) as stop:
        command.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_each_kind_is_found(home: Path) -> None:
    found = kinds(home)
    assert {name.rpartition(".")[2] for name in found.pop("index")} == {"lines", "lock"}
    assert found == GONE


def test_nothing_is_removed_without_yes_and_the_disk_use_is_said(home: Path, monkeypatch, capsys) -> None:
    before = tree(home)
    code, out, _ = run(monkeypatch, capsys)
    assert code == 0 and tree(home) == before
    assert "pretrained 22 B" in out and "GB free" in out and "with --yes it is removed" in out


def test_yes_removes_what_was_shown_and_nothing_else(home: Path, monkeypatch, capsys) -> None:
    before = tree(home)
    sizes = {left.path: left.size for left in find_leftovers(home).leftovers}
    code, out, _ = run(monkeypatch, capsys, "--yes")
    gone = before - tree(home)
    shown = {path.relative_to(home).as_posix() for path in sizes}
    below = {name for name in gone if not any(name == top or name.startswith(f"{top}/") for top in shown)}
    assert code == 0 and f"removed {sum(sizes.values())} B" in out
    assert shown <= gone and below == {"runs/r/train/done/checkpoints/latest"}
    made = tree(home) - before
    assert {name.rpartition("/")[2] for name in made} <= {".lock"}
    assert not kinds(home)
    assert LineIndex(home / "dataset/d/train.jsonl")[0] == b'{"id": 1}\n', "an index is made again"


def test_a_kind_alone_is_removed(home: Path, monkeypatch, capsys) -> None:
    run(monkeypatch, capsys, "partial", "--yes")
    left = kinds(home)
    assert "partial" not in left and left["checkpoints"] == GONE["checkpoints"]


def test_the_answer_for_a_program_closes(home: Path, monkeypatch, capsys) -> None:
    _, out, _ = run(monkeypatch, capsys, "checkpoints", "--json")
    found = json.loads(out)
    shown = sorted(Path(row["path"]).relative_to(home).as_posix() for row in found["leftovers"])
    assert shown == GONE["checkpoints"]
    every = sum(path.stat().st_size for place in found["used"] for path in (home / place).rglob("*") if path.is_file())
    assert sum(found["used"].values()) == every == sum(disk_use(home)[0].values())
    assert found["removed_bytes"] == 0


OTHERS = {
    "a folder of that name that no command of ours held": "pretrained/B/.partial/source.json",
    "a partial folder that holds a stranger's file": "pretrained/A/.partial/photos.zip",
    "a step folder without a manifest": "runs/r/train/done/checkpoints/step-00000020/weights.pt",
    "a checkpoint with a file that its manifest does not name": "runs/r/train/done/checkpoints/step-00000005/mine.txt",
    "a step folder of another program": "runs/other/checkpoints/step-00000005/manifest.json",
    "a stranger's file in the index": ".index/notes.txt",
    "a stranger's temporary file": "runs/mine/.report.odt.42.tmp",
    "a finished download that is being put in place": "pretrained/A/.partial/install.json",
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_provably_ours_stays(what: str, home: Path, monkeypatch, capsys) -> None:
    path = write(home / OTHERS[what])
    beside = tree(path.parent)
    code, _, _ = run(monkeypatch, capsys, "--yes")
    assert code == 0 and path.read_text() == TEN
    if path.parent.name in (".partial", "step-00000005"):
        assert tree(path.parent) == beside, "and so does the rest of its folder"


def test_what_stays_is_named_with_the_reason(home: Path, monkeypatch, capsys) -> None:
    write(home / OTHERS["a partial folder that holds a stranger's file"])
    _, out, _ = run(monkeypatch, capsys)
    assert "stays: " in out and "holds photos.zip, which is not ours" in out


def test_no_link_is_followed(home: Path, tmp_path_factory, monkeypatch, capsys) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "source.json", "[]")
    write(home / "pretrained/L/.lock", "")
    (home / "pretrained/L/.partial").symlink_to(elsewhere)
    other = stage(elsewhere / "stage", exported=True)
    (home / "runs/linked").symlink_to(other)
    run(monkeypatch, capsys, "--yes")
    assert (elsewhere / "source.json").exists() and len(list(other.glob("checkpoints/step-*"))) == 2
    assert (home / "pretrained/L/.partial").is_symlink()


def test_a_place_that_is_a_link_to_another_disk_is_cleaned(home: Path, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("disk") / "runs"
    (home / "runs").rename(elsewhere)
    (home / "runs").symlink_to(elsewhere)
    assert kinds(home)["checkpoints"] == GONE["checkpoints"]


def test_what_a_command_works_on_stays(home: Path, monkeypatch, capsys) -> None:
    with locked(home / "pretrained/A", "vlm download A"):
        code, out, _ = run(monkeypatch, capsys, "--yes")
    assert code == 0 and "stays: " in out and "vlm download A" in out
    assert (home / "pretrained/A/.partial/source.json").exists()


@pytest.mark.parametrize("kind", ["partial", "checkpoints"])
def test_a_kill_leaves_nothing_that_looks_whole(kind: str, home: Path, monkeypatch) -> None:
    """The folder is renamed before the first file goes, and the next `vlm clean` removes the rest."""
    (left, *_) = find_leftovers(home, [kind]).leftovers
    real = shutil.rmtree

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if ignore_errors:
            real(path, ignore_errors=True)
            return
        next(p for p in Path(path).rglob("*") if p.is_file()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove([left])
    assert not left.path.exists()
    monkeypatch.setattr(shutil, "rmtree", real)
    rest = [other for other in find_leftovers(home).leftovers if other.path.parent == left.path.parent]
    assert "temporary" in {other.kind for other in rest}
    remove(rest)
    assert not [path for path in left.path.parent.iterdir() if path.name.startswith(("..", ".step"))]
