"""`vlm eval --backend openai`: what the command needs, refuses and prints."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import openai_server as fake
from vlm.cli.commands.eval import evaluate
from vlm.core.errors import ConfigError, FetchError

server, Server = fake.server, fake.Server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    return tmp_path


def test_the_command_needs_no_checkpoint_and_no_torch(server: Server, home: Path) -> None:
    code = (
        "import sys\nfrom vlm.cli.commands.eval import evaluate\n"
        f"evaluate(['pope'], backend='openai', base_url={server.url!r}, mini=True, limit=6, api_key_env='TEST_KEY')\n"
        "assert 'torch' not in sys.modules"
    )
    env = {"VLM_HOME": str(home), "TEST_KEY": "secret-1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    folder = home / "runs" / "eval" / "model-1" / "POPE" / "default"
    assert (folder / "summary.json").exists() and server.headers[0]["Authorization"] == "Bearer secret-1"
    assert not any("secret-1" in path.read_text() for path in folder.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": None}, "without --base-url"),
        ({"stride": "64"}, "--stride with --backend openai"),
        ({"tiles": 6, "dtype": "bfloat16"}, "--tiles, --dtype with"),
        ({"backend": "vllm"}, "unknown backend 'vllm'"),
        ({"backend": "native"}, "--base-url with the native backend"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE is not set"),
        ({"family": "internvl3"}, "unknown family 'internvl3'"),
        ({"benchmarks": ["mm-niah-long-128k"]}, "--backend native"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    settings: dict[str, Any], message: str, server: Server, home: Path
) -> None:
    usual = {"benchmarks": ["pope"], "backend": "openai", "base_url": server.url, "mini": True}
    with pytest.raises(ConfigError, match=message):
        evaluate(**{**usual, **settings})
    assert not server.asked and not (home / "runs").exists()


def test_the_command_says_what_to_do_when_the_server_dies(server: Server, home: Path) -> None:
    server.say = lambda body, n: (503, {"Retry-After": "999"}, b"gone")
    with pytest.raises(FetchError, match="run the same command: the answers so far are kept"):
        evaluate(["pope"], backend="openai", base_url=server.url, mini=True, limit=4)
    server.say = lambda body, n: (422, {}, b"never")
    with pytest.raises(FetchError, match="refuses every question: HTTP 422: never"):
        evaluate(["pope"], backend="openai", base_url=server.url, mini=True, limit=4, concurrency=1)
