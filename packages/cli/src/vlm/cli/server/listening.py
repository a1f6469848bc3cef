"""The address that a server listens on, the key that it asks for, and the packages that it needs."""

import os
import socket

from vlm.core.errors import ConfigError

LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
"""Addresses that only this machine reaches."""

SILENT_SECONDS = 60
"""A client that takes nothing of its reply for so long is cut off."""


def find_key(key: str | None, variable: str | None) -> str | None:
    """Return the key of the server, or None.

    Raises:
        ConfigError: Two keys, an unset variable, or a key that no header carries.
    """
    if key is not None and variable is not None:
        raise ConfigError("both --api-key and --api-key-env", expected="one of them")
    if variable is not None and not os.environ.get(variable):
        raise ConfigError(f"--api-key-env {variable}: no such environment variable, or it is empty")
    if key == "":
        raise ConfigError("--api-key is empty", expected="a key, or no --api-key")
    found = os.environ[variable] if variable is not None else key
    if found is not None:
        from vlm.core.net import check_key

        check_key(found, "--api-key" if variable is None else f"--api-key-env {variable}")
    return found


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises ConfigError where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_SECONDS * 1000)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}", fix="choose another --port"
        ) from error
    return listener


def address_of(listener: socket.socket, *, secure: bool = False) -> str:
    """Return the address of a socket that listens, as a browser takes it."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{shown}:{port}"
