import os
import subprocess

from vlm.eval.run.provenance import commit_of


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *who, "-C", folder, *words], check=True, capture_output=True, text=True).stdout


def test_the_commit_of_a_tree_is_read_without_its_index_being_written(tmp_path):
    """A run that was killed while git held the index's lock left it, and the next `git commit` there failed."""
    file = tmp_path / "a"
    file.write_text("one")
    git(tmp_path, "init")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    os.utime(file, (1, 1))  # git would note in the index that the content is the same
    index = (tmp_path / ".git/index").read_bytes()
    assert commit_of(tmp_path) == head
    assert (tmp_path / ".git/index").read_bytes() == index
    file.write_text("two")
    (tmp_path / "untracked").touch()
    assert commit_of(tmp_path) == f"{head}-dirty"
    assert commit_of(tmp_path / "nowhere") is None
