"""The device that the rehearsal runs on: `pretended`, or a GPU with `pytest tests/rehearsal --device cuda`.

Everything here runs the same code twice, on the CPU and on the device, and compares the numbers.

It has a process of its own, which `tests/test_rehearsal.py` starts: torch counts the kinds of devices at its first
backward pass, so the pretended one must be there before any other test.
"""

import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from support.tiny_models import TOKENIZERS, lively_model
from vlm.models.checkpoint.load import save_model

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests out of a run of others."""
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return None if all(path.is_relative_to(HERE) for path in asked) else True


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="pretended", help="device of tests/rehearsal: pretended or cuda")


@pytest.fixture(scope="session")
def kind(request) -> str:
    """`pretended` or `cuda`; skips where there is no GPU."""
    kind = request.config.getoption("--device", default="pretended")
    if kind == "pretended":
        import support.pretended  # noqa: F401  registers the device
    elif not torch.cuda.is_available():
        pytest.skip(f"--device {kind}: torch sees no GPU on this machine")
    return kind


@pytest.fixture
def device(kind, monkeypatch) -> str:
    """The first device of that kind."""
    if kind == "pretended":
        from support.pretended import generator

        monkeypatch.setattr(torch, "Generator", generator)
    else:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the CPU's numbers are float32
    return f"{kind}:0"


@pytest.fixture
def second(kind) -> str:
    """Another device of that kind."""
    if kind == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("torch sees one GPU, this needs two")
    return f"{kind}:1"


@pytest.fixture
def waits(kind):
    """`with waits() as count:` the waits of the host; on a GPU those that torch warns of, together as `wait`."""
    if kind == "pretended":
        from support.pretended import waits

        return waits

    @contextmanager
    def warned():
        count = Counter()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield count
            finally:
                torch.cuda.set_sync_debug_mode("default")
                count["wait"] = sum("synchroniz" in str(w.message) for w in seen)

    return warned


@pytest.fixture
def hold(kind):
    """`hold(count, read=1, upload=2)`: exactly these waits on a pretended device, at most as many on a GPU."""

    def check(count, **expected):
        if kind == "pretended":
            asynchronous = ("behind", "across")
            assert {k: n for k, n in count.items() if k not in asynchronous and n} == expected
        else:
            assert count["wait"] <= sum(expected.values())

    return check


@pytest.fixture(params=TOKENIZERS)
def preset(request) -> str:
    """Each family's tiny preset in turn."""
    return request.param


@pytest.fixture
def pair(device):
    """`pair(preset)`: the same model on the CPU and on the device."""

    def make(preset="tiny-internvl2", **language):
        return lively_model(preset, **language), lively_model(preset, **language).to(device)

    return make


@pytest.fixture
def close():
    """`close(found, wanted)`: the numbers of a tensor of the device are those of the CPU, to rounding."""

    def check(found, wanted, rtol=1e-4):
        assert found.device != wanted.device, "nothing ran on the device"
        scale = wanted.detach().abs().max().item()
        torch.testing.assert_close(found.detach().cpu(), wanted.detach(), rtol=rtol, atol=rtol * scale)

    return check


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A checkpoint of the tiny InternVL2 with its tokenizer."""
    folder = tmp_path_factory.mktemp("pretrained") / "tiny-internvl2"
    save_model(lively_model(), folder, tokenizer=TOKENIZERS["tiny-internvl2"])
    return folder


@pytest.fixture
def picture(tmp_path):
    """`picture(n)`: a file with a gradient, another one for each n."""

    def make(n=0):
        path = tmp_path / f"{n}.png"
        image = Image.linear_gradient("L").resize((60 + 30 * n, 60)).convert("RGB")
        Image.blend(image, Image.new("RGB", image.size, (200, 40 * n, 30)), 0.5).save(path)
        return path

    return make
