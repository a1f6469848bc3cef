"""What goes wrong on the hub, with what to do: every error of its client, and of the HTTP library below it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from vlm.core.errors import FetchError, VlmError
from vlm.core.home import split_lines
from vlm.core.net import is_loopback, network_fix, reason_of, refuse_proxies
from vlm.core.text import printable

AGAIN = "then rerun the same command: it resumes here"
CUT = frozenset({"RemoteProtocolError", "ReadError", "WriteError", "ReadTimeout", "WriteTimeout"})


@contextmanager
def hub_errors(repo: str, revision: str | None = None, *, writes: bool = False, elsewhere: str = "") -> Iterator[None]:
    """Turn every error of the hub's client into one of ours.

    Args:
        repo: The repository that is read or written.
        revision: The revision that was asked for.
        writes: Whether something is uploaded: a refusal then has another fix.
        elsewhere: A command that gets the same from another place, for when the hub cannot be reached.

    Raises:
        FetchError: In place of any error but those of the disk.
    """
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    if not endpoint.startswith(("http://", "https://")):
        raise FetchError(
            f"HF_ENDPOINT={printable(endpoint)} is no address",
            expected="https://HOST",
            fix=f"export HF_ENDPOINT=https://{printable(endpoint)}",
        )
    if not is_loopback(endpoint):
        refuse_proxies()
    try:
        yield
    except VlmError:
        raise
    except Exception as fault:
        error = fault
        while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # of "Error while uploading ..."
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        ours = _refused(repo, error, endpoint) if writes else None
        raise ours or _as_ours(repo, revision, error, endpoint, elsewhere) from error


def was_cut(error: BaseException | None) -> bool:
    """Return whether a connection that stood was lost: the same request may well succeed now.

    A hub that cannot be found or refuses to connect is another thing, and said at once. The client's HTTP library
    differs by version, so its errors are known by name.
    """
    while error is not None:
        if type(error).__name__ in CUT or isinstance(error, ConnectionResetError | BrokenPipeError):
            return True
        error = error.__cause__
    return False


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an answer that became an error."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _refused(repo: str, error: Exception, endpoint: str) -> FetchError | None:
    """Return why an upload was refused; None for what happens to downloads too."""
    from huggingface_hub import errors, get_token

    status, text = status_of(error), str(error)
    namespace = repo.partition("/")[0]
    if status == 401 and get_token() and "credentials" in text.lower():
        return None
    if status in (401, 403) and not isinstance(error, errors.GatedRepoError | errors.DisabledRepoError):
        return FetchError(
            f"{repo}: the token may not write there ({status})",
            expected=f"a token with write rights in {namespace}",
            fix="make one that writes on the page of tokens of the hub, then `hf auth login`",
        )
    if status == 400 or (isinstance(error, ValueError) and re.match("Invalid metadata|LFS batch", text)):
        said = " ".join(printable(line) for line in split_lines(text.strip())[-3:] if line.strip())
        return FetchError(
            f"{repo}: {endpoint} does not accept the files: {said}"[:700], fix=f"correct what it names, {AGAIN}"
        )
    if status == 413 or status == 402:
        return FetchError(
            f"{repo}: the hub has no room for these files ({status})", fix="make room there, or ask for more"
        )
    return None


def _as_ours(repo: str, revision: str | None, error: Exception, endpoint: str, elsewhere: str) -> FetchError:
    from huggingface_hub import constants, errors, get_token

    if isinstance(error, errors.LocalEntryNotFoundError | errors.IncompleteSnapshotError) and error.__cause__:
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    text, status = str(error), status_of(error)
    other = f"; or: {elsewhere}" if elsewhere else ""
    if constants.HF_HUB_OFFLINE:
        fix = f"unset HF_HUB_OFFLINE{other}"
        return FetchError(f"{repo}: the hub cannot be reached: HF_HUB_OFFLINE is set", fix=fix)
    if isinstance(error, errors.GatedRepoError):
        return FetchError(f"{repo} is gated", fix="accept its license on its page, then `hf auth login`")
    if isinstance(error, errors.DisabledRepoError):
        return FetchError(f"{repo} was disabled by the hub", fix="look at its page for the reason")
    if status == 401 and get_token() and not re.search("not found|not exist", text, re.IGNORECASE):
        fix = "`hf auth login` with a new one, or unset HF_TOKEN"
        return FetchError(f"{repo}: the hub does not accept the token", fix=fix)
    if isinstance(error, errors.RevisionNotFoundError):
        return FetchError(f"{repo} has no revision {revision}", fix="correct --revision")
    if isinstance(error, errors.RepositoryNotFoundError):
        fix = "check the name; for a private repository `hf auth login`"
        return FetchError(f"the hub has no repository {repo}", fix=fix)
    if isinstance(error, errors.HFValidationError):
        return FetchError(f"{repo}: {printable(text)}", fix="correct the name of the repository")
    if "Consistency check failed" in text:
        return FetchError(f"{repo}: a file is shorter than announced", fix="rerun the same command: it resumes here")
    said = printable(split_lines(text.strip())[0]) if text.strip() else type(error).__name__
    if status == 429:
        known = "wait some minutes" if get_token() else "wait some minutes, or `hf auth login` for a higher limit"
        return FetchError(f"{repo}: the hub's rate limit is reached (429)", fix=f"{known}, {AGAIN}{other}")
    if status in (401, 403, 407):
        fix = f"check the token (`hf auth whoami`), the license on the repository's page, and the proxy, {AGAIN}"
        return FetchError(f"{repo}: {endpoint} refuses the request ({status})", fix=fix)
    if status is not None:
        fix = "wait" if status >= 500 else "check HF_ENDPOINT"
        return FetchError(f"{repo}: {endpoint} answered {status}", fix=f"{fix}, {AGAIN}{other}")
    network = any(base.__name__ == "HTTPError" for base in type(error).__mro__) or isinstance(error, OSError)
    if network or (isinstance(error, RuntimeError) and not isinstance(error, RecursionError)):
        fix = f"{network_fix(error, endpoint).removesuffix(', then rerun the same command')} and HF_ENDPOINT, {AGAIN}"
        return FetchError(f"{repo}: the hub cannot be reached: {reason_of(error, endpoint)}", fix=f"{fix}{other}")
    return FetchError(
        f"{repo}: the answer of {endpoint} cannot be read: {type(error).__name__}: {said}",
        expected="the hub's protocol; a login page or a proxy's notice is none",
        fix=f"open {endpoint} in a browser; check the proxy and HF_ENDPOINT, {AGAIN}",
    )
