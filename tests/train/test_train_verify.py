"""Launch scripts are read without running them, and recipes compared with them and with README tables.

The scripts here are written from what is known of the published ones: same arguments and values, own words.
"""

import json

import pytest
from typer.testing import CliRunner

from vlm.cli.commands import recipe as recipe_command
from vlm.core.errors import ConfigError
from vlm.train.verify.shell import read_script
from vlm.train.verify.verify import nearest, verify, verify_script

V2PE = """
# slurm launcher of the long-context stage
WORLD=${WORLD:-32}
PER_NODE=${PER_NODE:-8}
TOTAL=${TOTAL:-1024}
EACH=${EACH:-1}
STEPS_TO_SUM=$((TOTAL / EACH / WORLD))
NODE_COUNT=$((WORLD / PER_NODE))
STRIDE=${STRIDE:-"64"}
export TF_CPP_MIN_LOG_LEVEL=3
NAME=$(basename "$0" .sh)
OUT="work_dirs/${NAME}_${STRIDE}"
if [ ! -d "$OUT" ]; then
  mkdir -p "$OUT"; fi
pieces=(
  "one.py"
  "two.py"
)
for piece in "${pieces[@]}"; do cp "$piece" "$OUT"; done
srun --ntasks=${WORLD} --nodes=${NODE_COUNT} --ntasks-per-node=${PER_NODE} --job-name="${STRIDE}" \\
  python -u train/finetune.py \\
  --model_name_or_path pretrained/InternVL2-2B --conv_style "internlm2-chat" --output_dir ${OUT} \\
  --meta_path 'shell/data/sets.json' --force_image_size 448 --down_sample_ratio 0.5 --drop_path_rate 0.1 \\
  --freeze_llm False --freeze_mlp False --freeze_backbone False --vision_select_layer -1 --ps_version 'v2' \\
  --bf16 True --num_train_epochs 1 --max_steps 20000 --per_device_train_batch_size 1 \\
  --gradient_accumulation_steps 1 --save_steps 2500 --save_total_limit 5 --learning_rate 5e-6 \\
  --weight_decay 0.05 --warmup_ratio 0.03 --lr_scheduler_type "cosine" --max_seq_length 34000 --grad_checkpoint True \\
  --dynamic_image_size True --deepspeed "zero_stage3_config.json" --use_packed_ds True --num_images_expected 135 \\
  --max_packed_tokens 34000 --rope_pos_id_version 'v2pe_rnd' --loss_reduction "square" --mystery_flag 7 \\
  2>&1 | tee -a "${OUT}/log.txt"
"""

STAGE = """#!/bin/bash
deepspeed llava/train/train.py --deepspeed ./scripts/{zero}.json --version v1 --vision_tower path_to_tower\\
    --model_name_or_path lmsys/vicuna-7b-v1.5 --mm_vision_resolution 768 {special} \\
    --bf16 True --num_train_epochs 1 --per_device_train_batch_size {each} --gradient_accumulation_steps 1 \\
    --image_aspect_ratio pad --group_by_modality_length True --save_steps 24000 --save_total_limit 1 \\
    --learning_rate {lr} --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" \\
    --model_max_length 2048 --gradient_checkpointing True
"""
ONE = STAGE.format(
    zero="zero2",
    each=32,
    lr="3e-4",
    special="--freeze_backbone True --vision_add_five_stage 6 --vision_five_stage_width 3072",
)
TWO = STAGE.format(zero="zero3", each=32, lr="1e-3", special="--tune_vision_tower True --tune_vit_from_layer 2")

CHAT = """
torchrun --nnodes=1 --nproc_per_node=2 train/finetune.py --model_name_or_path pretrained/InternVL-Chat-V1-2-Plus \\
  --conv_style Hermes-2 --drop_path_rate 0.0 --freeze_llm True --freeze_mlp True --freeze_backbone True \\
  --use_llm_lora 16 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --learning_rate 1e-5 \\
  --max_seq_length 2048 --num_train_epochs 1 --dynamic_image_size False --bf16 True
"""

SECOND = """
CARDS=${{CARDS:-{gpus}}}
ALL=${{ALL:-{samples}}}
EACH=${{EACH:-4}}
torchrun --nnodes=1 --nproc_per_node=${{CARDS}} train/finetune.py --model_name_or_path OpenGVLab/{start} \\
  --conv_style internvl2_5 --use_fast_tokenizer False --force_image_size 448 --max_dynamic_patch {tiles} \\
  --down_sample_ratio 0.5 --drop_path_rate {drop} --freeze_llm {lora} --freeze_mlp {lora} {more} \\
  --freeze_backbone True --bf16 True --num_train_epochs 1 --per_device_train_batch_size ${{EACH}} --save_steps 200 \\
  --save_total_limit 1 --gradient_accumulation_steps $((ALL / EACH / CARDS)) --learning_rate {rate} \\
  --weight_decay {decay} --warmup_ratio 0.03 --lr_scheduler_type cosine --max_seq_length {length} \\
  --grad_checkpoint True --group_by_length True --dynamic_image_size True --use_thumbnail True --ps_version v2 \\
  --deepspeed zero_stage1_config.json
"""
FULL = {"gpus": 8, "samples": 128, "lora": False, "more": ""}
LORA = {"gpus": 2, "samples": 16, "lora": True, "more": "--use_llm_lora 16", "drop": 0.0}
NEW = {**FULL, "tiles": 12, "drop": 0.0, "length": 16384, "decay": 0.05, "rate": "2e-5"}
OLD = {"tiles": 6, "drop": 0.1, "length": 8192, "decay": 0.01, "rate": "4e-5"}
SECOND_RUNS = {
    "internvl3-1b-finetune": {**NEW, "start": "InternVL3-1B", "rate": "1e-5"},
    "internvl3-2b-finetune": {**NEW, "start": "InternVL3-2B"},
    "internvl3-8b-finetune": {**NEW, "start": "InternVL3-8B"},
    "internvl2_5-1b-finetune": {**OLD, **FULL, "start": "InternVL2_5-1B"},
    "internvl2_5-2b-finetune": {**OLD, **FULL, "start": "InternVL2_5-2B"},
    "internvl2_5-8b-finetune": {**OLD, **FULL, "start": "InternVL2_5-8B", "decay": 0.05},
    "internvl2_5-1b-finetune-lora": {**OLD, **LORA, "start": "InternVL2_5-1B"},
    "internvl2_5-2b-finetune-lora": {**OLD, **LORA, "start": "InternVL2_5-2B"},
    "internvl2_5-8b-finetune-lora": {**OLD, **LORA, "start": "InternVL2_5-8B", "decay": 0.05},
}

README = """
# Training

| Hyperparameters | Stage 1 | Stage 2 | Stage 3 |
| --------------- | ------- | :-----: | ------- |
| Learning Rate   | 3e-4    | 2e-5    | 2e-5    |
| Batch Size      | 256     | 256     | 128     |
| Epochs          | 1       | 1       | 1       |
| Weight Decay    | 0       | 0       | 0       |
| Optimizer       | AdamW   | AdamW   | AdamW   |

| Model | Global batch size | Learning rate | Max length | Score |
|---|---|---|---|---|
| a stranger | 1,024 | `1e-3` | 2048 | 61.2 |
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="launch.sh"):
        path = tmp_path / "repo" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_script_is_read_with_its_defaults_sums_arrays_and_loops(write):
    script = read_script(write(V2PE))
    assert (script.runner, script.program, script.gpus) == ("srun", "train/finetune.py", 32)
    assert script.launch["nodes"] == "4" and script.variables["STEPS_TO_SUM"] == "32"
    assert script.variables["pieces"] == "one.py two.py"
    assert script.flags["output_dir"] == "work_dirs/launch_64"
    assert script.flags["vision_select_layer"] == "-1" and script.flags["conv_style"] == "internlm2-chat"
    assert "tee" not in str(script.flags) and script.broken == [] and script.repeated == []


def test_what_is_worked_out_and_never_used_and_what_reaches_only_names_is_reported(write):
    script = read_script(write(V2PE))
    assert script.idle == ["EACH", "STEPS_TO_SUM", "TOTAL"]
    assert script.unforwarded == ["STRIDE"]


@pytest.mark.parametrize(
    "text, flags",
    [
        ("A='$B'\npython x.py --a \"$A\"", {"a": "$B"}),
        ("A=${1:-${B:-deep}}\npython x.py --a $A", {"a": "deep"}),
        ('A="two words"\npython x.py --a $A --b "$A"', {"a": "two words", "b": "two words"}),
        ("python x.py --a=1 --on --b '' # --c 2", {"a": "1", "on": "True", "b": ""}),
        ("N=7\npython x.py --a $((N * (2 + 1) - N / 2))", {"a": "18"}),
        ("python -m torch.distributed.run -m pkg.train --lr -0.5", {"lr": "-0.5"}),
        ("if true; then\n A=1\nelse\n A=2\nfi\npython x.py \\\n  --a $A \\\n  --b", {"a": "2", "b": "True"}),
        ("A=x; A+=y && python x.py --a é$A; echo done", {"a": "éy"}),
        ("case $1 in --lr) LR=$2;; esac\npython x.py --a \"${LR:-9}\"", {"a": "9"}),
        ("python x.py --path a\\ b --hash a#b", {"path": "a b", "hash": "a#b"}),
    ],
    ids=range(10),
)  # fmt: skip
def test_shell_as_it_is_written(write, text, flags):
    assert read_script(write(text)).flags == flags


def test_pieces_that_make_no_sense_are_named(write):
    script = read_script(write("A=$((1 / 0))\npython x.py --a $A \\ \n --b 1 --a 2\npython x.py --a 1 --a 2"))
    assert any("a blank after the backslash" in b and "line 2" in b for b in script.broken)
    assert any("1 / 0" in b for b in script.broken) and script.repeated == ["a"]


def test_no_script_and_a_script_that_starts_nothing_are_errors(write, tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_script(tmp_path / "none.sh")
    with pytest.raises(ConfigError, match="no command starts a Python program"):
        read_script(write("A=1\necho $A"))
    with pytest.raises(ConfigError, match=r"expected: a file \.sh, \.md or \.json"):
        verify("v2pe-32k", write("x", "x.txt"))


def test_nothing_of_a_script_is_executed(write, tmp_path):
    mark = tmp_path / "mark"
    text = f"A=$(touch {mark})\nB=`touch {mark}`\ntouch {mark}\npython x.py --a $A --b $(touch {mark})"
    read_script(write(text))
    assert not mark.exists()


def test_the_script_of_the_32k_stage_contradicts_nothing_unexplained(write):
    report = verify("v2pe-32k", write(V2PE))
    assert report.contradictions == []
    assert {f.key: (f.ours, f.theirs) for f in report.noted} == {
        "batch.samples": (48, 32),
        "batch.packing": ("best_fit", "greedy"),
        "batch.max_tokens": (68000, 34000),
        "batch.max_tiles": (270, 135),
    }
    same = {"optimizer.lr", "steps", "strides", "trainable", "zero.stage", "model.spec.vision.drop_path"}
    assert same <= {*report.agree}
    assert report.unknown == ["--mystery_flag 7"]
    assert report.unused == ["EACH=1", "STEPS_TO_SUM=32", "TOTAL=1024"] and report.unforwarded == ["STRIDE"]
    assert "--meta_path shell/data/sets.json" in report.dead_paths and "train/finetune.py" in report.dead_paths
    assert "seed" in report.only_ours and "optimizer.lr" not in report.only_ours


@pytest.mark.parametrize("name", SECOND_RUNS)
def test_the_second_fine_tunings_of_internvl3_contradict_nothing_unexplained(name, write):
    path = write(SECOND.format(**SECOND_RUNS[name]))
    report = verify(name, path)
    assert report.contradictions == [] and report.unknown == [] and report.broken == []
    assert [f.key for f in report.noted] == ["batch.packing"]
    same = {"optimizer.lr", "optimizer.weight_decay", "batch.samples", "max_length", "trainable", "model.start"}
    spec = {
        f"model.spec.{key}" for key in ("template", "vision.drop_path", "image_rule.max_tiles", "projector.version")
    }
    assert same | spec | {"zero.stage", "lora.rank"} <= {*report.agree}
    assert nearest(path) == name
    faster = write(SECOND.format(**{**SECOND_RUNS[name], "rate": "3e-3"}))
    assert [f.key for f in verify(name, faster).contradictions] == ["optimizer.lr"]


def test_paths_that_are_here_are_not_dead(write):
    path = write(V2PE)
    (path.parent / "train").mkdir()
    (path.parent / "train/finetune.py").touch()
    (path.parent / "zero_stage3_config.json").touch()
    dead = verify("v2pe-32k", path).dead_paths
    assert not any("finetune.py" in d or "zero_stage3" in d for d in dead) and len(dead) == 2


@pytest.mark.parametrize(
    "change, key",
    [
        (("--learning_rate 5e-6", "--learning_rate 5e-5"), "optimizer.lr"),
        (("--freeze_backbone False", "--freeze_backbone True"), "trainable"),
        (("v2pe_rnd", "v2pe_fix' --rope_pos_id_stride '64"), "strides"),
        (("zero_stage3", "zero_stage1"), "zero.stage"),
        (("--bf16 True", "--fp16 True"), "precision"),
        (("--drop_path_rate 0.1", "--drop_path_rate 0.4"), "model.spec.vision.drop_path"),
        (("--max_steps 20000 ", ""), "epochs"),
        (("--use_packed_ds", "--chunk_num 8 --use_packed_ds"), "sequence_parallel.size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_kind_of_contradiction_is_found(write, change, key):
    assert change[0] in V2PE
    found = {f.key for f in verify("v2pe-32k", write(V2PE.replace(*change))).contradictions}
    assert key in found


def test_stage_1_leaves_the_head_trainable_and_we_say_so(write):
    report = verify("convllava-stage1", write(ONE))
    assert report.contradictions == []
    noted = {f.key: f for f in report.noted}
    assert {*noted["trainable"].theirs} == {"projector.*", "language_model.lm_head.*", "encoder.stages.4.*"}
    assert {"batch.grouping", "batch.packing", "save_every"} <= noted.keys()
    assert {"model.spec.vision.depths.4", "model.spec.template", "batch.samples", "zero.stage"} <= {*report.agree}


def test_script_and_readme_of_stage_2_disagree_and_we_follow_the_readme(write):
    script, table = verify("convllava-stage2", write(TWO)), verify("convllava-stage2", write(README, "README.md"))
    (rate,) = [f for f in script.noted if f.key == "optimizer.lr"]
    assert (rate.ours, rate.theirs) == (2e-5, 1e-3) and "implausible" in rate.noted
    assert script.contradictions == [] and "trainable" in script.agree
    assert table.contradictions == table.noted == [] and "optimizer.lr" in table.agree


def test_the_1024_recipe_contradicts_the_768_script_in_its_resolution(write):
    assert [f.key for f in verify("convllava-stage2-1024", write(TWO)).contradictions] == ["model.spec.image_rule.size"]


def test_an_omitted_unshuffle_version_counts_as_todays_default(write):
    report = verify("internvl-chat-v1-2-finetune-lora", write(CHAT))
    (version,) = [f for f in report.contradictions if f.key == "model.spec.projector.version"]
    assert (version.ours, version.theirs) == ("v1", "v2")
    assert {"lora.rank", "lora.alpha", "batch.samples", "trainable"} <= {*report.agree}
    assert {f.key for f in report.noted} == {"model.start", "batch.packing"}


def test_a_table_is_read_either_way_round_and_a_label_chooses(write):
    path = write(README, "README.md")
    assert verify("convllava-stage3", path).contradictions == []
    wrong = verify("convllava-stage3", path, label="Stage 1").contradictions
    assert {f.key for f in wrong} == {"optimizer.lr", "batch.samples"}
    other = verify("convllava-stage3", path, label="a stranger")
    assert {f.key: f.theirs for f in other.contradictions} == {"optimizer.lr": 1e-3, "batch.samples": 1024}
    with pytest.raises(ConfigError, match=r"one of: Stage 1, Stage 2, Stage 3, a stranger"):
        verify("v2pe-32k", path)


def test_a_meta_file_is_compared_set_by_set(write):
    from vlm.train.recipe.recipe import load_recipe

    entries = load_recipe("v2pe-32k").data
    meta = {e.name: {"annotation": e.file, "length": e.count, "repeat_time": e.repeat, "root": "x"} for e in entries}
    assert verify("v2pe-32k", write(json.dumps(meta), "meta.json")).contradictions == []
    first, second, *_ = meta
    meta[first]["repeat_time"] = 99
    del meta[second]
    report = verify("v2pe-32k", write(json.dumps(meta), "meta.json"))
    assert len(report.contradictions) == 2 and len(report.agree) == 43
    with pytest.raises(ConfigError, match=r"meta\.json"):
        verify("v2pe-32k", write("[1]", "meta.json"))


def test_a_script_alone_is_compared_with_the_nearest_recipe(write):
    assert nearest(write(ONE)) == "convllava-stage1"
    assert verify_script(write(TWO)).recipe == "convllava-stage2"
    strange = verify_script(write("EXTRA=1\npython play.py --colour red"))
    assert strange.recipe is None and strange.unused == ["EXTRA=1"] and strange.unknown == ["--colour red"]


def test_the_command_ends_with_2_only_for_what_no_difference_explains(write):
    def run(*args):
        return CliRunner().invoke(recipe_command.app, ["verify", *map(str, args)])

    good, bad = write(TWO), write(TWO.replace("--warmup_ratio 0.03", "--warmup_ratio 0.3"), "bad.sh")
    done = run("convllava-stage2", "--against", good)
    assert done.exit_code == 0 and "1e-3 on a whole language model is implausible" in done.stdout
    failed = run("convllava-stage2", "--against", bad, "--json")
    assert failed.exit_code == 2
    (finding,) = json.loads(failed.stdout)["contradictions"]
    assert (finding["key"], finding["ours"], finding["theirs"]) == ("optimizer.warmup", 0.03, 0.3)
    assert run(good).exit_code == 0
    assert isinstance(run("convllava-stage2").exception, ConfigError)


PLAIN = """#!/bin/bash
LR=${LR:-2e-5}
ARGS=(
  --learning_rate $LR
  --num_train_epochs 1
)
deepspeed llava/train/train.py \\
    --deepspeed zero3.json \\
    --per_device_train_batch_size=16 \\
    --weight_decay 0. \\
    --warmup_ratio 0.03 \\
    "${ARGS[@]}"
"""


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (PLAIN.replace("\n", "\r\n").encode(), "CR LF"),
        (b"\xef\xbb\xbf" + PLAIN.encode(), "byte-order mark"),
        (PLAIN.encode("utf-16"), "UTF-16"),
        (PLAIN.replace("\n", "\r\n").encode("utf-16"), "CR LF"),
    ],
)
def test_a_script_saved_on_windows_has_the_same_verdict_and_a_line_of_its_own(tmp_path, raw, why):
    (tmp_path / "a.sh").write_text(PLAIN)
    (tmp_path / "b.sh").write_bytes(raw)
    plain, saved = read_script(tmp_path / "a.sh"), read_script(tmp_path / "b.sh")
    assert plain.broken == [] and any(why in line for line in saved.broken)
    for key in ("variables", "unforwarded", "idle", "runner", "program", "launch", "flags", "repeated"):
        assert getattr(saved, key) == getattr(plain, key)
    assert saved.flags["warmup_ratio"] == "0.03" and saved.flags["learning_rate"] == "2e-5"


@pytest.mark.parametrize("end", [" \\\\", ""])
def test_a_comment_in_a_continued_command_ends_it_as_bash_does(tmp_path, end):
    line = "    --weight_decay 0. \\\n"
    (tmp_path / "a.sh").write_text(
        PLAIN.replace(line, f"{line}    # --mm_projector_lr 2e-5{end.replace(chr(92) * 2, chr(92))}\n")
    )
    script = read_script(tmp_path / "a.sh")
    assert "line 11: the comment ends the command there; bash drops the lines below it" in script.broken
    assert script.flags["weight_decay"] == "0." and "warmup_ratio" not in script.flags


def test_an_empty_script_is_refused(tmp_path):
    (tmp_path / "a.sh").write_text("")
    with pytest.raises(ConfigError, match="no command starts"):
        read_script(tmp_path / "a.sh")


NUMERIC = (
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "chunk_num",
    "rope_pos_id_stride", "max_dynamic_patch", "tune_vit_from_layer", "use_llm_lora", "lora_r", "learning_rate",
    "max_seq_length", "save_steps", "vision_five_stage_width",
)  # fmt: skip


@pytest.mark.parametrize("value", ["''", "$NOT_SET", "inf", "many", "1e400"])
def test_an_argument_that_is_no_number_is_named_and_ends_no_comparison(tmp_path, value):
    path = tmp_path / "odd.sh"
    odd = " ".join(f"--{name} {value}" for name in NUMERIC)
    path.write_text(
        f"python -u train.py --conv_style internvl2_5 --lora_enable True --rope_pos_id_version v2pe_fix {odd} --new 1\n"
    )
    report = verify("internvl3-2b-finetune", path)
    assert "--new 1" in report.unknown
    assert sum("(no number)" in text for text in report.broken) >= 9
    assert verify_script(path)
