"""A tiny model behind a real server on a free port."""

from pathlib import Path

import pytest

from support.live_server import Server
from vlm.cli.server.app import make_app
from vlm.cli.server.served import ServedModel, Settings
from vlm.models.checkpoint.assemble import build
from vlm.models.engine import ChatEngine, Limits
from vlm.models.processor import Processor
from vlm.models.specs import load_preset

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"
NAME = "tiny"


@pytest.fixture(scope="module")
def parts():
    model = build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=1)
    for name, parameter in model.named_parameters():
        if name.startswith("language_model") and parameter.dim() == 2:
            parameter.data.mul_(6)
    return model.eval(), Processor(model.spec, TOKENIZER)


@pytest.fixture(scope="module")
def start(parts):
    running = []

    def make(limits=Limits(context=4096), **settings):
        made = Settings(**settings)
        served = ServedModel(NAME, ChatEngine(*parts, limits), parts[1], made)
        lines = []
        running.append(Server(make_app({NAME: served}, made, log=lines.append)))
        running[-1].served, running[-1].lines = served, lines
        return running[-1]

    yield make
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def server(start):
    """A server with the usual limits."""
    return start()
