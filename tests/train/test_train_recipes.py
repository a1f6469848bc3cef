"""The published recipes: their numbers, their data, their differences, and their dry runs."""

import json

import pytest
from typer.testing import CliRunner

from vlm.cli.commands import recipe as recipe_command
from vlm.cli.commands import train as train_command
from vlm.core.errors import ConfigError, UnknownName
from vlm.core.fetch.catalogue import load_catalogue
from vlm.models.specs import load_preset
from vlm.train.plan.run_plan import RunPlan
from vlm.train.recipe.recipe import load_recipe, recipe_names, training_spec

CONV = [f"convllava-stage{stage}{side}" for stage in (1, 2, 3) for side in ("", "-1024", "-1536")]
V2PE = ["v2pe-32k", "v2pe-256k", "internvl2-2b-baseline"]
CHAT = [f"internvl-chat-v1-2-{name}" for name in ("pretrain", "sft", "finetune", "finetune-lora")]


def test_every_published_stage_of_the_three_systems_is_shipped():
    assert {*CONV, *V2PE, *CHAT} <= {*recipe_names()}


def test_v2pe_on_internvl3_is_ours_and_holds_the_25_sets_that_do_not_resemble_milebench():
    ours, base = load_recipe("internvl3-2b-v2pe-32k"), load_recipe("v2pe-32k")
    names = [entry.file.split("/")[-2] for entry in ours.data]
    assert (names.count("long_vqa_32k"), names.count("long_mr_32k"), len(names)) == (17, 8, 25)
    assert all(entry in base.data for entry in ours.data)
    assert (ours.strides, ours.stride_choices) == ("random", (1, 2, 4, 8, 16, 32, 64, 128, 256))  # 1/256 to 1 a token
    assert ours.model.preset == "internvl3-2b" and "(ours)" in ours.title and ours.sources[""].startswith("ours")
    assert training_spec(ours.model, load_preset("internvl3-2b")).template == "internvl2_5"


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "nothing"))
    monkeypatch.delenv("RANK", raising=False)


def test_v2pe_lists_45_sets_with_their_counts_and_repeats():
    data = load_recipe("v2pe-32k").data
    sums = {}
    for entry in data:
        kind = entry.file.split("/")[-2]
        lines, passed, sets = sums.get(kind, (0, 0.0, 0))
        sums[kind] = (lines + entry.count, passed + entry.count * entry.repeat, sets + 1)
    assert {k: (n, round(p), s) for k, (n, p, s) in sums.items()} == {
        "long_vqa_32k": (1_048_400, 998_997, 17),
        "long_mr_32k": (195_000, 847_500, 8),
        "milebench_16k": (252_000, 630_379, 14),
        "milebench_nh": (31_000, 249_996, 6),
    }
    assert sum(entry.count for entry in data) == 1_526_400
    few = {e.name: e.max_tiles for e in data if e.max_tiles}
    assert sorted(few.values()) == [3, 3, 3, 3, 5, 5] and all("milebench-nh" in name for name in few)
    assert load_recipe("internvl2-2b-baseline").data == data


def test_the_nine_sets_of_v1_2_sum_up_to_the_published_number():
    data = load_recipe("internvl-chat-v1-2-sft").data
    assert len(data) == 9 and sum(entry.count for entry in data) == 1_267_819
    assert all(entry.repeat == 1 for entry in data)


@pytest.mark.parametrize("name", ["v2pe-32k", "internvl-chat-v1-2-sft", "convllava-stage1", "convllava-stage2"])
def test_data_lies_where_the_catalogue_puts_it_with_the_same_counts(name):
    known = {}
    for entry in load_catalogue().values():
        known |= {f"{entry.folder}/{file}": count for file, count in (entry.records or {}).items()}
        for step in entry.organize or ():
            made = step.model_dump().get("records") or {}
            if made.get("to"):
                known.setdefault(f"{entry.folder}/{made['to']}", None)
    for entry in load_recipe(name).data:
        assert entry.file in known, entry.file
        assert known[entry.file] == entry.count


@pytest.mark.parametrize(
    "name, rate, decay, samples, length, stage, steps",
    [
        ("v2pe-32k", 5e-6, 0.05, 48, 34000, 3, 20000),
        ("internvl-chat-v1-2-pretrain", 1e-4, 0.05, 8192, 4096, 3, 4800),
        ("internvl-chat-v1-2-sft", 1e-5, 0.05, 512, 2048, 3, None),
        ("internvl-chat-v1-2-finetune", 1e-5, 0.05, 128, 2048, 3, None),
        ("internvl-chat-v1-2-finetune-lora", 1e-5, 0.05, 16, 2048, 3, None),
        ("convllava-stage1", 3e-4, 0, 256, 2048, 2, None),
        ("convllava-stage2", 2e-5, 0, 256, 2048, 3, None),
        ("convllava-stage3", 2e-5, 0, 128, 2048, 3, None),
    ],
)
def test_published_numbers(name, rate, decay, samples, length, stage, steps):
    r = load_recipe(name)
    assert (r.optimizer.lr, r.optimizer.weight_decay) == (rate, decay)
    assert (r.batch.samples, r.max_length, r.zero.stage, r.steps) == (samples, length, stage, steps)
    assert r.optimizer.schedule == "cosine" and r.optimizer.warmup == (100 if name.endswith("pretrain") else 0.03)


def test_drop_path_unshuffle_and_template_reach_the_model():
    specs = {n: training_spec((r := load_recipe(n)).model, load_preset(r.model.preset)) for n in [*V2PE, *CHAT]}
    assert {n: s.vision.drop_path for n, s in specs.items()} == {
        **dict.fromkeys(V2PE, 0.1),
        **dict.fromkeys(CHAT, 0.0),
        "internvl-chat-v1-2-sft": 0.4,
    }
    assert all(specs[n].projector.version == "v2" for n in V2PE)
    assert all(specs[n].projector.version == "v1" for n in CHAT)
    assert {specs[n].template for n in CHAT} == {"Hermes-2"}


def test_the_256k_recipe_is_eight_times_the_32k_one_over_eight_gpus():
    short, long = load_recipe("v2pe-32k"), load_recipe("v2pe-256k")
    assert long.max_length == long.batch.max_tokens == 8 * short.max_length
    assert long.batch.max_tiles == 8 * load_recipe("v2pe-32k", published=True).batch.max_tiles
    assert (long.sequence_parallel.size, long.sequence_parallel.kind) == (8, "ring")
    assert long.max_length // long.sequence_parallel.size == short.max_length
    assert long.model.start.endswith("train/v2pe-32k/model") and long.optimizer.lr == 2e-6
    assert all("long_mr_256k" in entry.file for entry in long.data)
    published = load_recipe("v2pe-256k", published=True)
    assert (published.max_length, published.batch.max_tokens, published.steps) == (34000, 34000, 20000)


def test_resolutions_differ_in_shape_alone():
    for stage in (1, 2, 3):
        base = load_recipe(f"convllava-stage{stage}")
        for side in (1024, 1536):
            other = load_recipe(f"convllava-stage{stage}-{side}")
            assert other.model.preset == f"convllava-{side}" and str(side) in other.model.start
            same = {"optimizer", "batch", "data", "trainable", "max_length", "epochs", "zero", "differences"}
            assert other.model_dump(include=same) == base.model_dump(include=same)


@pytest.mark.parametrize("name", [*CONV, *V2PE, *CHAT])
def test_the_published_option_does_as_published_and_leaves_only_what_no_key_can_do(name):
    ours, theirs = load_recipe(name), load_recipe(name, published=True)
    assert ours.differences, "published sources always differ somewhere"
    assert theirs.differences == tuple(d for d in ours.differences if not d.set)
    for difference in ours.differences:
        for key, value in difference.set.items():
            now = theirs.model_dump(mode="json")
            for part in key.split("."):
                now = now[part]
            assert now == value, key
            assert "published" in theirs.sources[key]
    if any(d.set for d in ours.differences):
        assert ours.digest != theirs.digest


def test_disputed_values_and_their_published_option():
    def both(name):
        return load_recipe(name), load_recipe(name, published=True)

    intended, published = both("convllava-stage2")
    assert (intended.optimizer.lr, published.optimizer.lr) == (2e-5, 1e-3)
    intended, published = both("convllava-stage1")
    assert {*published.trainable} - {*intended.trainable} == {"language_model.lm_head.*"}
    intended, published = both("internvl-chat-v1-2-sft")
    versions = [r.model.spec["projector"]["version"] for r in (intended, published)]
    assert versions == ["v1", "v2"] and (intended.optimizer.decay, published.optimizer.decay) == ("intended", "trainer")
    assert load_recipe("convllava-stage2", published=True, overrides=("optimizer.lr=5e-4",)).optimizer.lr == 5e-4


def test_an_unknown_key_of_the_model_is_named():
    with pytest.raises(ConfigError, match=r"model\.spec: .*droppath"):
        load_recipe("v2pe-32k", overrides=("model.spec.vision.droppath=0.1",))


def test_nothing_trained_is_refused_unless_there_are_adapters():
    with pytest.raises(ConfigError, match="nothing is trained"):
        load_recipe("convllava-stage3", overrides=("trainable=[]",))
    assert load_recipe("internvl-chat-v1-2-finetune-lora").trainable == ()


def dry(*args):
    return CliRunner().invoke(train_command.app, [*args, "--dry-run"])


def test_a_dry_run_names_parts_mixture_step_and_launch_line(empty_home):
    result = dry("--recipe", "convllava-stage2", "--published", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["recipe"]["optimizer"]["lr"] == 1e-3
    assert facts["trainable"] == {
        "encoder.stages.2": 129_785_856,
        "encoder.stages.3": 61_612_032,
        "encoder.stages.4": 472_934_400,
        "projector": 29_368_320,
        "language_model.model": 6_738_415_616 - 32000 * 4096,
        "language_model.lm_head": 32000 * 4096,
    }
    assert [row["name"] for row in facts["mixture"]][:2] == ["sharegpt4v-pt", "sharegpt4v"]
    step = facts["step"]
    assert (step["samples"], step["groups"], step["samples_a_group"]) == (256, 8, 32)
    assert facts["launch"] == ["vlm train --recipe convllava-stage2 --published --processes 8"]
    assert {fault["what"] for fault in facts["faults"]} == {"weights", "data", "hardware"}


@pytest.mark.parametrize("gpus, rows", [(32, 16), (64, 8)])
def test_v1_2_runs_on_32_and_64_gpus_with_the_same_step(empty_home, gpus, rows):
    result = dry("--recipe", "internvl-chat-v1-2-sft", "--processes", str(gpus), "--json")
    facts = json.loads(result.stdout)
    assert facts["step"]["samples_a_group"] == rows and facts["step"]["samples"] == 512
    assert facts["step"]["steps"] == 1_267_819 // 512
    shares = [row["share"] for row in facts["mixture"]]
    assert sum(shares) == pytest.approx(1) and shares[2] == pytest.approx(665_058 / 1_267_819)
    ours, srun, torchrun = facts["launch"]
    assert ours == f"vlm launch --recipe internvl-chat-v1-2-sft --nodes {gpus // 8} --gpus-per-node 8"
    assert "srun" in srun and f"--nodes={gpus // 8}" in srun and "torchrun" in torchrun


def test_a_dry_run_for_people_holds_the_same(empty_home):
    result = dry("--recipe", "v2pe-256k")
    assert result.exit_code == 0, result.output
    parts = ("max_length: 272000", "long-mr-text-retrieval-128-256", "4 groups of 8 GPUs", "1,000 steps", "vlm launch")
    for part in parts:
        assert part in result.stdout, part


def test_all_faults_come_at_once_before_anything_is_loaded(empty_home):
    overrides = ["trainable=[nothing.*]", "sequence_parallel.size=3", "optimizer.warmup=9", "steps=5"]
    words = [word for o in [*overrides, "epochs=null"] for word in ("--set", o)]
    result = dry("--recipe", "convllava-stage2", "--processes", "8", *words)
    assert isinstance(result.exception, ConfigError)
    message = str(result.exception)
    for part in (
        "sequence_parallel.size 3 does not divide 8 GPUs",
        "one of 1, 2, 4, 8",
        "optimizer.warmup 9 of 5 steps",
        "match no parameter: nothing.*",
        "vlm train --recipe convllava-stage1",
        "share-captioner_coco_lcs_sam_1246k_1107.jsonl is not here",
    ):
        assert part in message, part


def test_fewer_samples_than_groups_is_a_fault(recipe):
    (fault,) = RunPlan.resolve(recipe("batch.samples=3"), 4).faults
    assert "batch.samples 3 for 4" in fault["found"] and "batch.samples=4" in fault["fix"]
    assert RunPlan.resolve(recipe("batch.samples=3", "sequence_parallel.size=2"), 4).faults == []


def test_heads_that_do_not_divide_are_a_fault_of_ulysses_alone(recipe):
    changes = ("sequence_parallel.size=3", "batch.samples=3")
    assert RunPlan.resolve(recipe(*changes), 3).faults == []
    (fault,) = RunPlan.resolve(recipe(*changes, "sequence_parallel.kind=ulysses"), 3).faults
    assert "attention heads" in fault["found"] and "ring" in fault["fix"]


def test_a_data_set_that_changed_is_named_with_both_counts(recipe, recipe_file, records):
    entry = {**recipe().data[0].model_dump(), "count": len(records) + 1}
    result = dry("--recipe", str(recipe_file), "--set", f"data={json.dumps([entry])}")
    assert result.exception is not None
    assert f"holds {len(records)} records, the recipe says {len(records) + 1}" in str(result.exception)


def test_an_unknown_recipe_names_the_nearest():
    result = dry("--recipe", "v2pe-32")
    assert isinstance(result.exception, UnknownName) and "v2pe-32k" in str(result.exception)


def test_show_gives_the_published_values_on_request():
    def shown(*more):
        result = CliRunner().invoke(recipe_command.app, ["show", "convllava-stage2", "--json", *more])
        return json.loads(result.stdout)

    assert (shown()["optimizer"]["lr"], shown("--published")["optimizer"]["lr"]) == (2e-5, 1e-3)
