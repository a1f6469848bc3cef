"""The native backend on a tiny untrained model: the same bytes at every batch size, settings that take effect."""

import json
from pathlib import Path

import numpy as np
import pytest

from vlm.cli.show.evaluation import show_evaluation
from vlm.core.errors import ConfigError, DataError
from vlm.eval.backends.native import Checkpoint, NativeBackend
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.runner import Options, run_evaluation

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"


@pytest.fixture(scope="module")
def pope(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini") / "pope"
    return load_benchmark("pope"), make_mini("POPE", folder, n=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.specs import load_preset

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0), folder, tokenizer=TOKENIZER)
    return Checkpoint(folder, device="cpu")


def test_results_do_not_depend_on_the_batch_size(tmp_path, pope, checkpoint):
    benchmark, data = pope
    for size in (1, 5):
        options = Options(batch_size=size, stride=16)
        run_evaluation(benchmark, NativeBackend(checkpoint, stride=16), tmp_path / str(size), options, data=data)
    one, five = ((tmp_path / size / "results.jsonl").read_bytes() for size in ("1", "5"))
    items = load_items(benchmark, data)
    assert one == five and one.count(b"\n") == len(items)
    first, row = (
        NativeBackend(checkpoint, stride=16).encode(items[0].id, items[0].messages),
        json.loads(one.splitlines()[0]),
    )
    assert (row["tokens"], row["max_position"]) == (len(first), first.position_ids[-1])
    assert row["max_position"] != row["tokens"] - 1


def test_a_picture_is_encoded_once_for_all_batches_and_the_results_are_the_same_bytes(tmp_path, pope, checkpoint):
    """POPE asks about each picture several times. Without the cache each batch encodes its pictures again."""
    benchmark, data = pope
    tiles = [0]
    handle = checkpoint.model.encoder.register_forward_pre_hook(
        lambda _, args: tiles.__setitem__(0, tiles[0] + len(args[0]))
    )
    seen = {}
    try:
        for kept in (True, False):
            fresh = Checkpoint(checkpoint.path, device="cpu")
            fresh.__dict__["model"] = checkpoint.model
            backend = NativeBackend(fresh, stride=16)
            if not kept:
                fresh.features_of(backend.processor).limit = 0
            tiles[0] = 0
            run_evaluation(benchmark, backend, tmp_path / str(kept), Options(batch_size=2, stride=16), data=data)
            assert fresh.features.nbytes == sum(f.nbytes for f in fresh.features.kept.values())
            seen[kept] = (tiles[0], (tmp_path / str(kept) / "results.jsonl").read_bytes())
    finally:
        handle.remove()
    items = load_items(benchmark, data)
    different = {tile.tobytes() for item in items for tile in backend.encode(item.id, item.messages).pixels}
    assert seen[True][0] == len(different) < seen[False][0]
    assert seen[True][1] == seen[False][1]


def test_another_image_rule_or_a_full_memory_forgets_the_features(checkpoint):
    first, again, other = (NativeBackend(checkpoint, image_rule={"max_tiles": n}) for n in (2, 2, 1))
    kept = checkpoint.features_of(first.processor)
    assert checkpoint.features_of(again.processor) is kept
    assert checkpoint.features_of(other.processor) is not kept
    other.recover()
    assert checkpoint.features is None


def test_stride_rounding_and_tiles_reach_the_input(pope, checkpoint):
    benchmark, data = pope
    item = load_items(benchmark, data)[0]

    def encode(**settings):
        return NativeBackend(checkpoint, **settings).encode(item.id, item.messages)

    plain, strided = encode(), encode(stride=3)
    assert plain.position_ids[-1] == len(plain) - 1 > strided.position_ids[-1]
    rounded = encode(stride=3, positions="float32")
    assert np.array_equal(rounded.position_ids, strided.position_ids.astype(np.float32).astype(np.float64))
    tile = encode(image_rule={"max_tiles": 1})
    assert tile.n_tiles == 1
    settings = [NativeBackend(checkpoint, **s).settings for s in ({}, {"stride": 3}, {"image_rule": {"max_tiles": 1}})]
    assert len({str(s) for s in settings}) == 3


def test_a_prompt_beyond_the_limit_is_refused_and_the_model_is_never_loaded(tmp_path, pope, checkpoint):
    benchmark, data = pope
    fresh = Checkpoint(checkpoint.path, device="cpu")
    with pytest.raises(DataError, match="none of 12 items was answered"):
        run_evaluation(benchmark, NativeBackend(fresh, max_length=5), tmp_path, Options(), data=data)
    assert "model" not in vars(fresh)
    assert '"outcome": "refused"' in (tmp_path / "results.jsonl").read_text()


def test_prompts_beyond_the_trained_positions_are_counted_and_said(tmp_path, pope, checkpoint, capsys):
    benchmark, data = pope
    backend = NativeBackend(checkpoint)
    run_evaluation(benchmark, backend, tmp_path, Options(), data=data)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().split("\n")[:-1]]
    longest = max(row["max_position"] for row in rows)
    assert "beyond_positions" not in json.loads((tmp_path / "summary.json").read_text())
    backend.max_positions = int(longest)  # positions count from 0
    summary = run_evaluation(benchmark, backend, tmp_path, Options(), data=data)
    beyond = sum(row["max_position"] == longest for row in rows)
    assert summary["beyond_positions"] == beyond
    show_evaluation(summary, tmp_path)
    assert f"{beyond} prompts reach beyond the positions that the model was trained for" in capsys.readouterr().out


def test_another_kv_dtype_is_another_variant_and_is_recorded(tmp_path, pope, checkpoint):
    benchmark, data = pope
    options = Options(stride=16, limit=2)
    run_evaluation(benchmark, NativeBackend(checkpoint, stride=16), tmp_path, options, data=data)
    small = NativeBackend(Checkpoint(checkpoint.path, device="cpu", kv_dtype="int8"), stride=16)
    with pytest.raises(ConfigError, match="kv_dtype"):
        run_evaluation(benchmark, small, tmp_path, options, data=data)
    summary = run_evaluation(benchmark, small, tmp_path / "int8", options, data=data)
    assert summary["provenance"]["decode"]["kv_dtype"] == "int8"
    assert small.checkpoint.model.kv_storage.dtype == "int8"
    assert "kv_dtype" not in checkpoint.settings, "answers of earlier runs must stay valid"
