"""The address that a server listens on, and what it needs to start."""

import socket
from importlib.util import find_spec

from vlm.core.errors import ConfigError

LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
"""Addresses that only this machine reaches."""


def needs_packages(*names: str) -> None:
    """Raise ConfigError unless these packages of the extra `serve` are installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ConfigError(f"the server needs {', '.join(missing)}", fix='pip install "farlens-cli[serve]"')


def listen(host: str, port: int, *, secure: bool = False) -> tuple[socket.socket, str]:
    """Return a socket that listens, and its address.

    Raises:
        ConfigError: It cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # who connects before the server is up waits a moment
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}", fix="choose another --port"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    return listener, f"{'https' if secure else 'http'}://{shown}:{listener.getsockname()[1]}"


def hosts_of(host: str, key: str | None) -> frozenset[str]:
    """Return the names by which a page may be asked for: any with a key, else those of the address listened on."""
    return LOCAL if key is None and host in LOCAL else frozenset()
