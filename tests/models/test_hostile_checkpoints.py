"""Checkpoints that are damaged, hostile or put together from two: a named error, nothing run, nothing fetched."""

import json
import os
import pickle
import shutil
import socket
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.core.errors import CheckpointError, VlmError
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import load_model
from vlm.models.processor import load_processor
from vlm.models.session import ChatSession


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection fails the test."""

    def refuse(self, address):
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(change(content) or content))


def setting(*keys, value):
    """A change of one key of config.json's spec."""

    def change(config):
        place = config["spec"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def header(file: Path, change) -> None:
    """Change the header of a safetensors file."""
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8 : 8 + size])
    change(head, [k for k in head if k != "__metadata__"])
    raw = json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + size :])


NUMBERS = {
    "10^9 layers": setting("language", "depth", value=10**9),
    "width 10^12": setting("language", "width", value=10**12),
    "a word as width": setting("language", "width", value="abc"),
    "-1 layers": setting("language", "depth", value=-1),
    "zero heads": setting("language", "heads", value=0),
    "zero key-value heads": setting("language", "kv_heads", value=0),
    "heads that do not divide": setting("language", "heads", value=7),
    "more key-value heads than heads": setting("language", "kv_heads", value=64),
    "NaN as base": setting("language", "rope_theta", value=float("nan")),
    "zero as base": setting("language", "rope_theta", value=0),
    "no vocabulary": setting("language", "vocab", value=0),
    "scaling by infinity": setting("language", "rope_scaling", value={"kind": "linear", "factor": float("inf")}),
    "zero encoder heads": setting("vision", "heads", value=0),
    "zero pixels a patch": setting("vision", "patch_size", value=0),
    "a patch above the image": setting("vision", "patch_size", value=4096),
    "10^9 pixels a tile": setting("image_rule", "size", value=10**9),
    "half a cell a tile": setting("image_rule", "size", value=57),
    "zero pixels a tile": setting("image_rule", "size", value=0),
    "10^9 tiles": setting("image_rule", "max_tiles", value=10**9),
    "no spread of pixels": setting("image_rule", "std", value=[0, 0, 0]),
    "ratio zero": setting("projector", "ratio", value=0),
    "10^9 projector layers": setting("projector", value={"kind": "mlp", "depth": 10**9}),
    "negative strides": setting("strides", value=-1),
    "one stage of a ConvNeXt": setting("vision", value={"kind": "convnext", "depths": [1], "widths": [8]}),
    "a hub's model": setting("vision", value={"kind": "timm", "name": "hf-hub:someone/something"}),
    "a folder's model": setting("vision", value={"kind": "timm", "name": "local-dir:/tmp"}),
    "a path as model": setting("vision", value={"kind": "timm", "name": "../../x"}),
    "a list": lambda _: [1],
    "no spec": lambda _: {"model_type": "vlm"},
    "null as spec": lambda _: {"model_type": "vlm", "spec": None},
    "a list as model type": lambda _: {"model_type": ["vlm"]},
}


@pytest.mark.parametrize("case", NUMBERS)
def test_a_hostile_configuration_is_an_error_that_names_the_file(case, broken):
    edit(broken / "config.json", NUMBERS[case])
    with pytest.raises(CheckpointError, match=r"broken/config\.json") as error:
        ChatSession(broken)
    assert error.value.fix or error.value.expected


@pytest.mark.parametrize("name", ["convnext_huge_of_nobody", "resnet50.nobodys_weights"])
def test_a_timm_model_that_timm_does_not_have_is_named(name, broken):
    edit(broken / "config.json", setting("vision", value={"kind": "timm", "name": name}))
    with pytest.raises(VlmError, match=name.split(".")[0]):
        ChatSession(broken)


PUBLISHED = {
    "no keys": {"model_type": "internvl_chat", "vision_config": {}, "llm_config": {}},
    "words for sections": {"model_type": "internvl_chat", "vision_config": "a", "llm_config": 5},
    "a number for the tower": {"model_type": "llava", "mm_vision_tower": 5, "mm_projector_type": "linear"},
    "an empty tower": {"model_type": "llava", "mm_vision_tower": "", "mm_projector_type": "linear"},
    "the folder above": {"model_type": "llava", "mm_vision_tower": "x/..", "mm_projector_type": "linear"},
    "null for a section": {"model_type": "internvl", "vision_config": None, "text_config": None},
    "a list for a section": {"model_type": "internvl", "vision_config": [], "text_config": []},
    "zero heads": {
        "model_type": "internvl",
        "vision_config": {},
        "text_config": {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 0},
    },
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_a_published_schema_with_other_values_is_an_error(case, broken):
    (broken / "config.json").write_text(json.dumps(PUBLISHED[case]))
    with pytest.raises(CheckpointError, match="broken"):
        ChatSession(broken)


@pytest.mark.parametrize(
    ("key", "value"), [("max_dynamic_patch", 0), ("downsample_ratio", 0), ("force_image_size", "big"), ("template", 5)]
)
def test_a_published_configuration_with_one_wrong_value_is_an_error(key, value, golden_data, tmp_path):
    folder = shutil.copytree(golden_data / "internvl2-v2pe-tiny", tmp_path / "broken")
    edit(folder / "config.json", lambda config: {**config, key: value})
    with pytest.raises(CheckpointError, match=r"broken/config\.json"):
        read_layout(folder)


def test_a_vision_tower_outside_the_checkpoint_is_never_read(golden_data, tmp_path):
    folder = shutil.copytree(golden_data / "convllava-tiny", tmp_path / "a" / "model", ignore=lambda *_: ["cases"])
    (folder / "vision_tower").rename(tmp_path / "elsewhere")
    for tower in (str(tmp_path / "elsewhere"), "../../elsewhere"):
        edit(folder / "config.json", lambda config, tower=tower: {**config, "mm_vision_tower": tower})
        with pytest.raises(CheckpointError, match="no copy of its vision tower"):
            read_layout(folder)


INDEXED = {
    "a folder above": "../whole/model.safetensors",
    "an absolute path": "/etc/passwd",
    "a number": 5,
    "null": None,
    "a list": ["a"],
    "another ending": "config.json",
    "our own state": ".partial/model.safetensors",
    "NUL": "a\0.safetensors",
}


@pytest.mark.parametrize("case", INDEXED)
def test_an_index_names_only_files_beside_it(case, broken):
    keys = load_file(broken / "model.safetensors")
    (broken / "model.safetensors").unlink()
    index = broken / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(keys, INDEXED[case])}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json names the shard"):
        load_model(broken)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 200_000])
def test_an_index_of_another_form_is_an_error(content, broken):
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        load_model(broken)


def overlap(head, keys):
    head[keys[1]]["data_offsets"] = head[keys[0]]["data_offsets"]


def negative(head, keys):
    head[keys[0]]["shape"][0] = -1


def integers(file: Path) -> None:
    state = load_file(file)
    name = "projector.1.weight"
    save_file({**state, name: state[name].to(torch.int8)}, file)


WEIGHTS = {
    "a header of 2^60 bytes": lambda f: f.write_bytes(struct.pack("<Q", 2**60) + f.read_bytes()[8:]),
    "overlapping tensors": lambda f: header(f, overlap),
    "a negative shape": lambda f: header(f, negative),
    "integers": integers,
    "an end that is missing": lambda f: f.write_bytes(f.read_bytes()[:-100]),
    "a folder": lambda f: (f.unlink(), f.mkdir()),
    "a pipe": lambda f: (f.unlink(), os.mkfifo(f)),
    "no bytes": lambda f: f.write_bytes(b""),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_hostile_weight_files_are_an_error(case, broken):
    WEIGHTS[case](broken / "model.safetensors")
    with pytest.raises(CheckpointError, match="broken"):
        load_model(broken)


class Command:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


PICKLES = {
    "a command beside tensors": lambda f, state, mark: torch.save({**state, "a": Command(mark)}, f),
    "a bare pickle": lambda f, state, mark: f.write_bytes(pickle.dumps(Command(mark))),
    "garbage": lambda f, state, mark: f.write_bytes(b"\x80\x02garbage\xff" * 10),
    "numbers for names": lambda f, state, mark: torch.save(dict(enumerate(state.values())), f),
    "tensors without data": lambda f, state, mark: torch.save({k: t.to("meta") for k, t in state.items()}, f),
    "sparse tensors": lambda f, state, mark: torch.save({k: t.to_sparse() for k, t in state.items()}, f),
}


@pytest.mark.parametrize("case", PICKLES)
def test_hostile_pickles_run_nothing(case, broken, tmp_path):
    state = load_file(broken / "model.safetensors")
    (broken / "model.safetensors").unlink()
    PICKLES[case](broken / "pytorch_model.bin", state, tmp_path / "ran")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_model(broken)
    assert not (tmp_path / "ran").exists()


FILES = {
    "config.json": ["[" * 200_000, b"\xff\xfe\0", "5"],
    "tokenizer.json": ['{"a": 1}', b"\xff\xfe", "[]", '{"added_tokens": 5}', "{}"],
    "tokenizer_config.json": ["[1]", '{"bos_token": {}}', '{"bos_token": 5}'],
    "special_tokens_map.json": ['"a"', "[" * 200_000],
}


@pytest.mark.parametrize(("name", "content"), [(name, c) for name, cases in FILES.items() for c in cases])
def test_a_file_of_another_form_is_an_error(name, content, broken):
    (broken / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match="broken"):
        ChatSession(broken)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_regular_files_are_opened(name, kind, broken):
    (broken / name).unlink()
    (os.mkfifo if kind == "pipe" else os.mkdir)(broken / name)
    with pytest.raises(CheckpointError, match="broken"):
        ChatSession(broken)


@pytest.mark.parametrize("tokens", [{"<img>": "x"}, {"<img>": -5}, {"<img>": None}, {"<img>": 10**12}])
def test_an_added_token_with_another_id_is_an_error(tokens, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("tiny-internvl2"), tmp_path / "broken")
    edit(folder / "tokenizer_config.json", lambda c: {k: v for k, v in c.items() if k != "added_tokens_decoder"})
    (folder / "added_tokens.json").write_text(json.dumps(tokens))
    with pytest.raises(CheckpointError, match="broken"):
        load_processor(folder)


def test_a_sentencepiece_file_of_noise_is_an_error(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("tiny-internvl2"), tmp_path / "broken")
    (folder / "tokenizer.model").write_bytes(b"\0garbage" * 50)
    with pytest.raises(CheckpointError, match=r"tokenizer in .*broken cannot be read"):
        load_processor(folder)


def test_code_that_a_checkpoint_names_is_never_run(broken, tmp_path):
    lines = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (broken / "evil.py").write_text(lines)
    edit(broken / "config.json", lambda c: {**c, "auto_map": {"AutoModel": "evil.M"}, "trust_remote_code": True})
    code = {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "chat_template": "{{ ''.__class__.__mro__ }}"}
    edit(broken / "tokenizer_config.json", lambda c: {**c, **code})
    assert isinstance(ChatSession(broken).ask("hi", max_new_tokens=2), str)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x/" * 3000])
def test_a_name_that_no_disk_can_hold_is_no_checkpoint(name):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        ChatSession(name)
