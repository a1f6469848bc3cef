"""Lines of the published READMEs become commands of ours that parse; what is no script is refused by name."""

import json
import shlex

import pytest
import typer
from typer.testing import CliRunner

from vlm.cli.commands import eval as eval_command
from vlm.cli.commands import launch as launch_command
from vlm.cli.commands import recipe as recipe_command
from vlm.cli.published import evaluation, training
from vlm.cli.published.lines import read_lines
from vlm.core.errors import ConfigError, UnknownName
from vlm.eval.benchmark import load_benchmark
from vlm.eval.suites import benchmarks_of

FLAGS = "--rope_pos_id_version v2pe_fix --rope_pos_id_stride 64"
EVALUATION = {
    f"STRIDE=64 sh scripts/evaluate_auto.sh CKPT {FLAGS}": "v2pe-general --model CKPT --stride 64 --workers 8",
    f"STRIDE=64 sh scripts/evaluate_milebench.sh CKPT {FLAGS}": "mileBench --model CKPT --stride 64 --workers 8",
    f"STRIDE=64 sh scripts/evaluate_mmniah.sh CKPT {FLAGS}": "mm-niah --model CKPT --stride 64 --workers 8",
    f"STRIDE=64 sh scripts/evaluate_mmniah_long.sh CKPT {FLAGS}": (
        "mm-niah-long-128k mm-niah-long-256k mm-niah-long-512k mm-niah-long-1m --model CKPT --stride 64 --processes 8"
    ),
    f"GROUP=32 GPUS_PER_TASK=1 sh scripts/evaluate_longvqa.sh CKPT {FLAGS}": (
        "long-vqa-32k --model CKPT --stride 64 --workers 8"
    ),
    f"GROUP=64 GPUS_PER_TASK=4 sh scripts/evaluate_longvqa.sh CKPT {FLAGS}": (
        "long-vqa-64k --model CKPT --stride 64 --workers 2"
    ),
    "GPUS=1 sh evaluate.sh 'my ckpt' mmbench-dev-en --dynamic --max-num 12": (
        "MMBench-dev-en --model 'my ckpt' --tiles 12"
    ),
    "sh evaluate.sh CKPT vqa-gqa-testdev --load-in-8bit --auto": "GQA --model CKPT --quantize 8bit --device map",
    "bash evaluate.sh CKPT pope --rope_pos_id_version default": "POPE --model CKPT --stride none --workers 8",
    "sh scripts/refcoco.sh": "refcoco-all --model MODEL --workers 8",
}


def parses(app, words):
    command = typer.main.get_command(app)
    with command.make_context("vlm", list(words)) as context:
        if isinstance(command, typer.core.TyperGroup):
            name, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            sub.make_context(name, rest, parent=context)


@pytest.mark.parametrize(("line", "ours"), EVALUATION.items())
def test_a_published_evaluation_line_is_one_command_that_parses(line, ours):
    (found,) = [evaluation.translate(one) for one in read_lines(line)]
    assert found.commands == [f"vlm eval {ours}"]
    words = shlex.split(found.commands[0])[2:]
    parses(eval_command.app, words)
    for bench in benchmarks_of(words[: words.index("--model")]):
        load_benchmark(bench)


def test_a_partition_or_several_machines_ask_srun():
    line = "PARTITION='my gpus' GPUS=16 GPUS_PER_TASK=2 sh scripts/evaluate_mmniah.sh CKPT"
    assert evaluation.translate(read_lines(line)[0]).commands == [
        "srun --partition='my gpus' --ntasks=8 --ntasks-per-node=4 --gpus-per-task=2"
        " vlm eval mm-niah --model CKPT --workers 8"
    ]


def test_every_task_word_is_a_benchmark_or_suite():
    for meant in evaluation.TASKS.values():
        for bench in benchmarks_of([meant]):
            load_benchmark(bench)


def test_what_has_no_counterpart_and_what_differs_is_said():
    line = "SITE=x sh evaluate.sh CKPT pope --num-beams 5 --few-shot 2 --rope_pos_id_version v2pe_rnd"
    found = evaluation.translate(read_lines(line)[0])
    assert [lost.split()[0] for lost in found.without] == ["--num-beams", "--few-shot", "SITE=x"]
    assert "v2pe_rnd draws strides" in found.notes[0]


@pytest.mark.parametrize("script", training.SCRIPTS)
def test_a_known_training_script_is_a_recipe_that_parses(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (found,) = [training.translate(one) for one in read_lines(f"PARTITION=p GPUS=32 sh shell/x/{script}")]
    assert found.commands[0].endswith("--nodes 4 --gpus-per-node 8 --launcher srun --partition p")
    parses(launch_command.app, shlex.split(found.commands[0])[2:])
    assert "is not here" in found.notes[0]


def test_a_script_that_is_here_is_compared_and_its_values_are_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.sh").write_text(
        "deepspeed llava/train/train.py --deepspeed ./scripts/zero3.json --version v1 --vision_tower path_to_tower"
        " --model_name_or_path lmsys/vicuna-7b-v1.5 --mm_vision_resolution 768 --tune_vision_tower True"
        " --tune_vit_from_layer 3 --bf16 True --num_train_epochs 1 --per_device_train_batch_size 16"
        " --gradient_accumulation_steps 1 --image_aspect_ratio pad --group_by_modality_length True --save_steps 24000"
        " --save_total_limit 1 --learning_rate 7e-6 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine"
        " --model_max_length 2048 --gradient_checkpointing True --mystery 3\n"
    )
    result = CliRunner().invoke(recipe_command.app, ["from-script", "GPUS=16 sh mine.sh", "--json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    (command,) = found["commands"]
    assert command.startswith("vlm launch --recipe convllava-stage3") and "--set optimizer.lr=7e-06" in command
    assert "--mystery 3" in found["without"]
    parses(launch_command.app, shlex.split(command)[2:])


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        ("GROUP=41 sh scripts/evaluate_longvqa.sh CKPT", ConfigError, "32, 40, 48, 56, 64"),
        ("GPUS=x sh scripts/evaluate_auto.sh CKPT", ConfigError, "a whole number"),
        ("GPUS=8 GPUS_PER_TASK=3 sh scripts/evaluate_auto.sh CKPT", ConfigError, "divide each other"),
        ("sh scripts/evaluate.sh CKPT chartqa", UnknownName, "vqa-chartqa-test"),
        ("sh scripts/evaluate_mmnih.sh CKPT", UnknownName, "evaluate_mmniah.sh"),
        ("sh 'scripts/evaluate.sh CKPT", ConfigError, "a line of a shell"),
        ("make me a model", ConfigError, "no script in"),
        ("", ConfigError, "no script in"),
        ("no/such/file", ConfigError, "no script in"),
    ],
)
def test_what_is_no_published_line_is_refused_by_name(line, error, says):
    with pytest.raises(error) as found:
        [evaluation.translate(one) for one in read_lines(line)]
    assert says in str(found.value)


def test_a_file_of_lines_is_read_whole_and_a_binary_refused(tmp_path):
    lines = tmp_path / "all.sh"
    text = "#!/bin/sh\n# all\nsh scripts/evaluate_auto.sh \\\n  CKPT\nGROUP=40 sh scripts/evaluate_longvqa.sh CKPT\n"
    lines.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert [evaluation.translate(one).commands[0].split()[2] for one in read_lines(str(lines))] == [
        "v2pe-general",
        "long-vqa-40k",
    ]
    (tmp_path / "weights.sh").write_bytes(b"\0\1")
    with pytest.raises(ConfigError, match="no script"):
        read_lines(str(tmp_path / "weights.sh"))
