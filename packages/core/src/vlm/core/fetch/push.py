"""Upload the files of a model to a repository of the hub, in one commit, and compare what the hub then holds.

    push({"config.json": Path("model/config.json"), "README.md": b"..."}, "ada/cats", message="vlm push")

A killed or cut upload leaves nothing to see: files that arrived wait on the hub, and the same command sends the others.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.core.errors import ConfigError, FetchError
from vlm.core.fetch.hub_errors import hub_errors
from vlm.core.fetch.manifest import sha256_of
from vlm.core.progress import human_bytes
from vlm.core.text import printable

THE_HUBS = frozenset({".gitattributes"})
"""Files that the hub itself puts into a repository."""

REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9]([\w.-]{0,94}\w)?", re.ASCII)

Content = Path | bytes


@dataclass(frozen=True)
class Pushed:
    """The commit that holds the files, and whether it is a new one."""

    commit: str
    new: bool


def push(
    files: Mapping[str, Content],
    repo: str,
    *,
    message: str,
    revision: str | None = None,
    private: bool = True,
    replace: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Pushed:
    """Make `repo` hold these files; return the commit.

    Token and endpoint are those of huggingface-hub (HF_TOKEN, HF_ENDPOINT).

    Args:
        files: Name in the repository -> file, or its content.
        repo: `NAME` or `NAMESPACE/NAME`; it is made if it is missing.
        message: Of the commit.
        revision: Branch; it is made if it is missing. Default: the main one.
        private: Whether the repository must be private; one that is made now is then.
        replace: Remove what the branch holds besides, in the same commit.
        say: Called with what happens, in words.

    Raises:
        ConfigError: The repository is public, with `private`; the branch holds other files, without `replace`.
        FetchError: No token, or one without rights; no network; the hub refuses a file, or holds another content.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token

    check_name(repo)
    if constants.HF_HUB_OFFLINE:
        raise FetchError(f"{repo}: the hub cannot be reached: HF_HUB_OFFLINE is set", fix="unset HF_HUB_OFFLINE")
    if get_token() is None:
        raise FetchError(
            f"{repo}: no token for the hub",
            expected="a token that may write",
            fix="`hf auth login`, or export HF_TOKEN=..., then rerun the same command",
        )
    api = HfApi()
    with hub_errors(repo, revision, writes=True):
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        before = api.model_info(repo, revision=revision, files_metadata=True)
        if private and not before.private:
            raise ConfigError(
                f"{repo} is there already, and public",
                expected="a private repository, or --public",
                fix="choose another name, make it private on its page, or add --public: everybody will see the model",
            )
        other = sorted({s.rfilename for s in before.siblings or []} - files.keys() - THE_HUBS)
        if other and not replace:
            named = ", ".join(printable(name) for name in other[:5]) + (", ..." if len(other) > 5 else "")
            raise ConfigError(
                f"{repo} holds {len(other)} files that are not of this model: {named}",
                expected="a new repository, or one that holds this model",
                fix="choose another name or --revision; or --replace, which removes them in the same commit",
            )
        additions = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in sorted(files.items())
        ]
        large = [one for one in additions if isinstance(files[one.path_in_repo], Path)]
        for number, one in enumerate(large, 1):  # one by one: what has arrived need not be sent again
            api.preupload_lfs_files(repo, [one], revision=revision, free_memory=False)
            size = human_bytes(one.upload_info.size)
            say(f"{repo}: {number} of {len(large)} files: {one.path_in_repo} ({size})")
        deletions = [CommitOperationDelete(name) for name in other]
        commit = api.create_commit(repo, [*additions, *deletions], commit_message=message, revision=revision).oid
        after = api.model_info(repo, revision=commit, files_metadata=True)
    refuse_differences(files, after, repo)
    return Pushed(commit, new=commit != before.sha)


def refuse_differences(files: Mapping[str, Content], about: Any, repo: str) -> None:
    """Compare the files with what the hub says of a commit.

    Raises:
        FetchError: It has another content, or lacks one.
    """
    held = {sibling.rfilename: sibling for sibling in about.siblings or []}
    wrong = [name for name, content in files.items() if name not in held or not _is_same(content, held[name])]
    if wrong:
        raise FetchError(
            f"{repo}: the hub holds another content of {', '.join(wrong[:5])}",
            expected="the files of this machine, to the bit",
            fix="rerun the same command; did somebody else write to the repository?",
        )


def _is_same(content: Content, sibling: Any) -> bool:
    if sibling.lfs is not None:
        ours = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)
        return bool(ours == sibling.lfs.sha256)
    whole = content if isinstance(content, bytes) else content.read_bytes()
    return bool(hashlib.sha1(b"blob %d\0" % len(whole) + whole).hexdigest() == sibling.blob_id)


def check_name(repo: str) -> None:
    """Check the name of a repository.

    Raises:
        ConfigError: The hub takes no such name.
    """
    if not REPOSITORY.fullmatch(repo):
        raise ConfigError(
            f"{printable(repo)} is no name of a repository",
            expected="NAME or NAMESPACE/NAME: letters, digits, `-`, `_`, `.`, at most 96",
            fix="correct it",
        )
