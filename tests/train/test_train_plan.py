"""A plan says what a recipe costs and what is missing before anything is loaded, with lines that work."""

import json
import shutil

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from vlm.cli.commands import plan as plan_command
from vlm.cli.commands import train as train_command
from vlm.cli.show.plan import show_plan
from vlm.core.errors import CheckpointError, ConfigError, HardwareError, UnknownName, VlmError
from vlm.core.fetch.catalogue import find_entry, load_catalogue
from vlm.core.organize.organize_set import can_organize
from vlm.train.plan.faults import refuse
from vlm.train.plan.fit import misfit
from vlm.train.plan.run_plan import RunPlan
from vlm.train.recipe.recipe import load_recipe, recipe_names
from vlm.train.run import loop

STAGE3 = "convllava-stage3"

PROJECTOR = 3072 * 4096 + 4096 + 4096 * 4096 + 4096
LLAMA_7B = 6_738_415_616


def conv_next(depths, widths):
    """Parameters of a ConvNeXt without final norm: stem, blocks, downsampling."""
    total, before = 3 * 16 * widths[0] + 3 * widths[0], None
    for depth, width in zip(depths, widths, strict=True):
        if before:
            total += 2 * before + 4 * before * width + width
        total += depth * (49 * width + width + 2 * width + 8 * width * width + 5 * width + width)
        before = width
    return total


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    """A home that is not even there, and no loading of weights."""
    from vlm.models.checkpoint import load as weights

    def refuse(*_):
        raise AssertionError("a plan must not read weights")

    monkeypatch.setenv("VLM_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr(weights, "tensors", refuse)
    monkeypatch.setattr(weights, "load_model", refuse)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "nothing"


def test_the_plan_of_a_published_stage_is_exact_and_names_what_is_missing(empty_home):
    result = CliRunner().invoke(plan_command.app, [STAGE3, "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    encoder = conv_next((3, 3, 27, 3, 6), (192, 384, 768, 1536, 3072))
    assert plan["parameters"] == {"encoder": encoder, "projector": PROJECTOR, "language_model": LLAMA_7B}
    assert sum(plan["trainable"].values()) == PROJECTOR + LLAMA_7B and "encoder" not in str(plan["trainable"])
    assert plan["tokens_per_image"] == 144 and plan["processes"] == 8 and plan["zero_stage"] == 3
    trained = PROJECTOR + LLAMA_7B
    states = {"gb_weights": 2 * (trained + encoder), "gb_gradients": 2 * trained, "gb_optimizer": 12 * trained}
    assert {k: plan[k] for k in states} == pytest.approx({k: v / 8 / 1e9 for k, v in states.items()})
    lacking = {x["what"]: x["fix"] for x in plan["lacking"]}
    assert lacking.keys() == {"weights", "data", "hardware"}
    assert lacking["weights"] == "vlm download ConvLLaVA-pretrain-768"
    assert lacking["data"].startswith("vlm download convllava-stage3")
    assert "8 GPUs of 80 GB" in lacking["hardware"]
    assert not empty_home.exists()


@pytest.mark.parametrize("more", [[], ["--force"]], ids=["", "--force"])
def test_train_refuses_what_cannot_start_here_and_names_the_lines_that_fetch_it(empty_home, more):
    result = CliRunner().invoke(train_command.app, ["--recipe", STAGE3, *more])
    assert result.exit_code != 0 and isinstance(result.exception, VlmError)
    message = str(result.exception)
    assert result.exception.exit_code == 1
    for part in ("weights: ", "vlm download ConvLLaVA-pretrain-768", "data: ", "vlm download convllava-stage3"):
        assert part in message
    assert ("hardware: " in message) != bool(more), "--force lets hardware pass, never weights or data"
    assert not empty_home.exists()


def test_a_dry_run_shows_the_plan_and_starts_nothing(empty_home):
    result = CliRunner().invoke(train_command.app, ["--recipe", STAGE3, "--dry-run"])
    assert result.exit_code == 0
    assert not empty_home.exists()


@pytest.fixture
def built(monkeypatch):
    """One entry for each model that is built while the test runs."""
    from vlm.models.vlm import VisionLanguageModel

    built, make = [], VisionLanguageModel.__init__

    def counted(self, spec):
        built.append(spec)
        make(self, spec)

    monkeypatch.setattr(VisionLanguageModel, "__init__", counted)
    return built


def test_a_dry_run_builds_the_meta_model_once_and_counts_each_file_once(empty_home, built, monkeypatch):
    from vlm.train.plan import faults

    counted, count = [], faults.count_records
    monkeypatch.setattr(faults, "count_records", lambda entry: counted.append(entry.name) or count(entry))
    for words in ([STAGE3], ["v2pe-32k", "--json"]):
        result = CliRunner().invoke(train_command.app, ["--dry-run", "--recipe", *words])
        assert result.exit_code == 0, result.output
        assert len(built) == 1
        assert len(counted) == len(set(counted)) > 0
        built.clear()
        counted.clear()


def test_a_plan_that_does_not_fit_tries_every_change_on_the_same_model(recipe, machine, built):
    machine(1e-6)
    plan = RunPlan.resolve(recipe("batch.samples=64"), machine="x", nodes=1, gpus_per_node=4)
    before = {name: (p.device, p.shape) for name, p in plan.model.named_parameters()}
    assert plan.estimate.problems and plan.estimate.fix is None
    assert len(built) == 1
    assert {name: (p.device, p.shape) for name, p in plan.model.named_parameters()} == before


def test_missing_hardware_alone_has_its_own_exit_code_and_can_be_forced(recipe):
    plan = RunPlan.resolve(recipe('hardware={"gpus": 8, "memory_gb": 80}'))
    assert [x["what"] for x in plan.missing] == ["hardware"]
    with pytest.raises(HardwareError, match="8 GPUs of 80 GB") as error:
        refuse(plan.recipe.name, plan.missing)
    assert error.value.exit_code == 7
    refuse(plan.recipe.name, plan.missing, force=True)


def test_nothing_is_missing_where_all_is_here_and_steps_are_those_of_the_stream(recipe, processor, records, home):
    from vlm.train.run.stream import Stream

    entry = {**recipe().data[0].model_dump(), "repeat": 1.4}
    whole = recipe("steps=null", "epochs=2", "batch.samples=7", data=[entry])
    plan, stream = RunPlan.resolve(whole), Stream(whole, processor)
    assert plan.missing == []
    assert plan.samples == len(stream.index) == 24 + 10
    assert plan.steps == stream.total_steps == 9


def test_counts_are_those_of_the_checkpoint_that_is_here(recipe, model):
    plan = RunPlan.resolve(recipe("model.preset=convllava-768"))
    assert sum(plan.parameters.values()) == sum(p.numel() for p in model.parameters())


def test_bfloat16_without_zero_counts_the_float32_weights_that_training_keeps(recipe):
    plan = RunPlan.resolve(recipe("precision=bfloat16"), processes=4)
    trained = sum(plan.trainable.values())
    assert plan.recipe.zero_stage == 1
    assert (plan.gb_gradients, plan.gb_optimizer) == pytest.approx((2e-9 * trained, 12e-9 * trained / 4))


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_plans_and_the_lines_it_prints_exist(empty_home, name):
    catalogue = load_catalogue()
    for lack in RunPlan.resolve(load_recipe(name)).missing:
        for line in lack["fix"].split(" && "):
            words = line.split()
            match words[:2]:
                case ["vlm", "download"]:
                    assert all(find_entry(word, catalogue) for word in words[2:])
                case ["vlm", "data"]:
                    assert words[2] == "organize" and can_organize(find_entry(words[3], catalogue))
                case ["vlm", "train"]:
                    assert words[2] == "--recipe" and words[3] in recipe_names()
                case ["vlm", "weights"]:
                    assert words[2] == "make" and "--tokenizer" in words
                case _:
                    assert lack["what"] in ("hardware", "disk") or "correct `data`" in line, line


def test_a_start_without_its_encoder_names_the_encoder(empty_home):
    folder = empty_home / "pretrained/ConvLLaVA-pretrain-768"
    folder.mkdir(parents=True)
    config = {"model_type": "llava", "mm_vision_tower": "ConvLLaVA/ConvLLaVA-ConvNeXt-768"}
    (folder / "config.json").write_text(json.dumps(config))
    weights = next(x for x in RunPlan.resolve(load_recipe(STAGE3)).missing if x["what"] == "weights")
    assert weights["fix"] == "vlm download ConvLLaVA-ConvNeXt-768"


SMALL = {"bf16_tflops": 100, "fp32_tflops": 10, "link_gbs": 100, "net_gbs": 10, "source": "test"}


@pytest.fixture
def machine(monkeypatch):
    """`machine(0.01)`: the plan's machines have that many GB."""
    from vlm.train.plan import run_plan as module
    from vlm.train.plan.machines import Machine

    return lambda gb: monkeypatch.setattr(module, "get_machine", lambda name: Machine(memory_gb=gb, **SMALL))


def estimate(recipe, machine="x", nodes=1, gpus_per_node=1):
    return RunPlan.resolve(recipe, machine=machine, nodes=nodes, gpus_per_node=gpus_per_node).estimate


def test_states_and_transfers_follow_the_zero_stage(recipe, machine):
    machine(80)
    trained = sum(RunPlan.resolve(recipe()).trainable.values())
    found = {
        stage: estimate(recipe(f"zero.stage={stage}", "batch.samples=64"), "x", nodes=2, gpus_per_node=4)
        for stage in range(4)
    }
    states = {s: [f.gb[k] * 1e9 for k in ("weights", "gradients", "optimizer")] for s, f in found.items()}
    full = [4 * trained, 4 * trained, 8 * trained]
    divided = {0: (1, 1, 1), 1: (1, 1, 8), 2: (1, 8, 8), 3: (8, 8, 8)}
    for stage, by in divided.items():
        assert states[stage] == pytest.approx([x / d for x, d in zip(full, by, strict=True)])
    sent = {s: f.gb_sent["zero"] for s, f in found.items()}
    assert sent[0] == pytest.approx(2 * 7 / 8 * 4 * trained / 1e9) and sent[0] == sent[1] < sent[2] < sent[3]


def test_what_is_active_is_said_in_words(recipe, machine):
    machine(80)
    alone = estimate(recipe("batch.samples=8"), "x", gpus_per_node=8)
    assert "no ring" in alone.parallel and "data 8 x sequence 1" in alone.parallel and alone.gb_sent["sequence"] == 0
    ring = estimate(recipe("batch.samples=8", "sequence_parallel.size=4", "zero.stage=3"), "x", gpus_per_node=8)
    assert "data 2 x sequence 4 (ring over 4 GPUs)" in ring.parallel and "ZeRO-3" in ring.parallel
    assert ring.gb_sent["sequence"] > 0
    assert max(ring.gb_activation_phases.values()) < max(alone.gb_activation_phases.values())


def test_what_does_not_fit_is_refused_with_the_smallest_change_that_does(recipe, machine):
    machine(80)
    plain = estimate(recipe("batch.samples=64"), "x", gpus_per_node=4)
    saved = estimate(recipe("batch.samples=64", "gradient_checkpointing=true"), "x", gpus_per_node=4)
    assert saved.gb_needed < plain.gb_needed and saved.flops_run > plain.flops_run
    machine((saved.gb_needed + plain.gb_needed) / 2)
    tight = estimate(recipe("batch.samples=64"), "x", gpus_per_node=4)
    assert tight.problems and tight.fix.startswith("--set gradient_checkpointing=true ")
    error = misfit("tiny", tight)
    assert isinstance(error, HardwareError) and "does not run on 4 x x" in str(error) and error.exit_code == 7
    assert misfit("tiny", saved) is None
    machine(1e-6)
    assert estimate(recipe("batch.samples=64"), "x", gpus_per_node=4).fix is None


def test_impossible_meshes_are_refused(recipe, machine):
    machine(80)
    assert "does not divide" in estimate(recipe("sequence_parallel.size=3"), "x", gpus_per_node=4).problems[0]
    assert "would idle" in estimate(recipe("batch.samples=2"), "x", gpus_per_node=4).problems[0]
    heads = recipe("sequence_parallel={size: 8, kind: ulysses}", "batch.samples=8")
    assert "attention heads" in estimate(heads, "x", gpus_per_node=8).problems[0]


def test_hours_are_steps_times_seconds_and_an_unknown_machine_is_named(recipe, machine):
    with pytest.raises(UnknownName, match="a100-8"):
        estimate(recipe(), "a100-8O")
    machine(80)
    found = estimate(recipe("steps=100"), "x", gpus_per_node=2)
    assert found.gpu_hours == pytest.approx(2 * found.hours) and found.hours == pytest.approx(found.seconds / 36)


def test_plan_exits_with_7_where_it_does_not_fit_and_0_where_only_weights_lack(recipe_file, empty_home):
    common = [str(recipe_file), "--machine", "a100-40", "--nodes", "1", "--gpus-per-node", "2", "--json"]
    result = CliRunner().invoke(plan_command.app, common)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert {x["what"] for x in plan["lacking"]} >= {"weights", "data"} and plan["estimate"]["problems"] == []
    result = CliRunner().invoke(plan_command.app, [*common, "--set", "sequence_parallel.size=4"])
    assert isinstance(result.exception, HardwareError) and json.loads(result.stdout)["estimate"]["problems"]


def test_published_means_in_plan_what_it_means_in_train(recipe_file, tmp_path):
    """Hours against published ones are another option, without a recipe."""
    difference = {"key": "max_length", "ours": "512", "published": "256", "why": "x", "set": {"max_length": 256}}
    path = tmp_path / "differs.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(recipe_file.read_text()), "differences": [difference]}))

    def planned(*words):
        return CliRunner().invoke(plan_command.app, [*words, "--json"])

    ours, theirs = (json.loads(planned(str(path), *words).stdout) for words in ((), ("--published",)))
    assert (ours["tokens_per_step"], theirs["tokens_per_step"]) == (6 * 512, 6 * 256)
    for words in ([str(path), "--against-published"], ["--published", "--against-published"], ["--published"]):
        assert isinstance(planned(*words).exception, ConfigError), words


@pytest.mark.parametrize(
    ("strides", "length", "reaches"),
    [("null", 2048, None), ("null", 2049, 2049), ("2", 4096, None), ("2", 5000, 2500), ("random", 4096, 4096)],
)
def test_positions_beyond_the_trained_range_are_said_once(strides, length, reaches, recipe, capsys):
    """The tiny model was trained for 2,048; a tile has 4 tokens, so that strides of 2 need half the positions."""
    plan = RunPlan.resolve(recipe(f"strides={strides}", f"max_length={length}", "batch.max_tokens=5000"))
    show_plan(plan, to=Console(width=200))
    said = capsys.readouterr().out
    assert plan.as_dict()["beyond_positions"] == plan.beyond_positions
    if reaches is None:
        assert plan.beyond_positions is None and "was trained for" not in said
    else:
        assert said.count("was trained for 2,048") == 1 and f"reaches position {reaches:,}, " in said


def test_a_tokenizer_that_does_not_fit_ends_training_before_a_weight_is_read(recipe, home, tmp_path, monkeypatch):
    folder = shutil.copytree(home / "pretrained/tiny-internvl2", tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    config["spec"]["language"]["vocab"] -= 5
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(loop, "load_model", lambda *_, **__: pytest.fail("weights are read"))
    with pytest.raises(CheckpointError, match="the tokenizer has 651 tokens, the embedding 646 rows"):
        loop.train(recipe(f"model.start={folder}"), tmp_path / "out", quiet=True)
    config["spec"]["template"] = "internlm2-chatt"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UnknownName, match=r"unknown template 'internlm2-chatt'\n  expected: did you mean internlm2-chat"
    ):
        loop.train(recipe(f"model.start={folder}"), tmp_path / "out2", quiet=True)
