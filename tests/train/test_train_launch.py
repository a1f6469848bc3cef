"""`--processes`: ranks of one command, its exit code, its signals, its messages."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

from vlm.cli.commands import launch as launch_command
from vlm.core.errors import ConfigError, HardwareError, VlmError
from vlm.train.launch import launch as module
from vlm.train.launch.launch import launch
from vlm.train.run.loop import train


def python(code):
    return [sys.executable, "-c", "import os, sys, time, signal\nrank = int(os.environ['RANK'])\n" + code]


def test_each_rank_knows_its_rank(tmp_path):
    code = f"""
keys = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
open({str(tmp_path)!r} + f"/{{rank}}", "w").write(" ".join(os.environ[k] for k in keys))
"""
    assert launch(python(code), 3) == 0
    words = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [w[:3] for w in words] == [["3", str(rank), "127.0.0.1"] for rank in range(3)]
    assert len({w[3] for w in words}) == 1


def test_the_exit_code_of_a_failed_rank_is_ours_and_its_words_are_shown(capfd):
    code = "print('rank', rank, 'speaks', file=sys.stderr); time.sleep(0.3 * (rank == 0)); sys.exit(5 if rank else 0)"
    assert launch(python(code), 2) == 5
    said = capfd.readouterr().err
    assert "rank 1 failed first:\nrank 1 speaks" in said and "rank 0 speaks" in said


def test_an_error_that_all_ranks_share_is_shown_once(capfd):
    code = "print('rank', rank, 'speaks', file=sys.stderr); time.sleep(0.5 * (rank == 0)); sys.exit(7)"
    assert launch(python(code), 2) == 7
    assert capfd.readouterr().err == "rank 0 speaks\n"


def test_only_the_first_rank_speaks(capfd):
    assert (
        launch(python("print('rank', rank, 'speaks'); time.sleep(rank * 0.3); sys.exit(6 if rank == 0 else 0)"), 2) == 6
    )
    said = capfd.readouterr()
    assert "rank 0 speaks" in said.out and "rank 1 speaks" not in said.out + said.err


def test_a_rank_killed_by_a_signal_counts_as_failed_and_the_rest_is_ended(monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.2)
    began = time.monotonic()
    assert launch(python("os.kill(os.getpid(), 9) if rank else time.sleep(60)"), 2) == 128 + 9
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_with_its_signal_and_its_log(monkeypatch, capfd, tmp_path, victim):
    monkeypatch.setattr(module, "GRACE", 0.2)
    code = f"print('rank', rank, 'speaks', flush=True); os.kill(os.getpid(), 9) if rank == {victim} else time.sleep(60)"
    assert launch(python(code), 2, tmp_path / "logs") == 128 + 9
    said = capfd.readouterr().err
    assert f"rank {victim} failed first: killed by SIGKILL (signal 9)" in said
    log = tmp_path / "logs/rank-1.log"
    assert log.read_text() == "rank 1 speaks\n"
    assert (f"rank 1 speaks\nits log: {log}" in said) == (victim == 1)


def test_a_rank_that_ended_without_a_word_is_said_to_and_only_the_words_of_this_start_are_shown(capfd, tmp_path):
    (tmp_path / "rank-1.log").write_text("of an earlier start\n")
    assert launch(python("time.sleep(0.3 * (rank == 0)); sys.exit(5 if rank else 0)"), 2, tmp_path) == 5
    said = capfd.readouterr().err
    assert "rank 1 failed first:\nit wrote nothing\nits log: " in said and "earlier" not in said
    assert (tmp_path / "rank-1.log").read_text() == "of an earlier start\n"


def test_the_loss_of_a_peer_is_not_what_failed_first(capfd, tmp_path):
    code = f"""
pid = {str(tmp_path)!r} + "/pid"
if rank:
    open(pid + "-", "w").write(str(os.getpid()))
    os.rename(pid + "-", pid)
    os.kill(os.getpid(), 9)
while not os.path.exists(pid) or ") Z " not in open("/proc/" + open(pid).read() + "/stat").read():
    time.sleep(0.001)  # until the peer is gone: often both are found within one look at them
sys.exit(1)
"""
    assert launch(python(code), 2) == 128 + 9
    assert "rank 1 failed first: killed by SIGKILL" in capfd.readouterr().err


def test_logs_that_cannot_be_kept_do_not_stop_a_run(capfd, tmp_path):
    (tmp_path / "logs").write_text("a file")
    assert launch(python("print('rank', rank, 'speaks'); sys.exit(5 * rank)"), 2, tmp_path / "logs") == 5
    said = capfd.readouterr().err
    assert "rank 1 failed first:\nrank 1 speaks" in said and "its log" not in said


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_reach_every_rank(tmp_path, number, code):
    body = f"""
def stop(number, _):
    open({str(tmp_path)!r} + f"/stopped{{rank}}", "w").write(str(number))
    sys.exit(130 if number == 2 else 0)
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
open({str(tmp_path)!r} + f"/ready{{rank}}", "w").close()
time.sleep(60)
"""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys; from vlm.train.launch.launch import launch; sys.exit(launch({python(body)!r}, 2))",
        ]
    )
    wait_for(tmp_path, "ready0", "ready1")
    parent.send_signal(number)
    assert parent.wait(20) == code
    assert [(tmp_path / f"stopped{r}").read_text() for r in (0, 1)] == [str(int(number))] * 2


def test_ranks_are_asked_to_stop_when_the_launcher_is_killed(tmp_path):
    body = f"""
from vlm.train.launch.launch import end_with_launcher
def stop(number, _):
    open({str(tmp_path)!r} + f"/stopped{{rank}}", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
end_with_launcher()
open({str(tmp_path)!r} + f"/ready{{rank}}", "w").close()
time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", f"from vlm.train.launch.launch import launch; launch({python(body)!r}, 2)"]
    )
    wait_for(tmp_path, "ready0", "ready1")
    parent.kill()
    parent.wait()
    wait_for(tmp_path, "stopped0", "stopped1")


def wait_for(folder, *names):
    end = time.monotonic() + 20
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < end, f"{names} did not appear"
        time.sleep(0.01)


def test_a_rank_alone_has_no_launcher(monkeypatch):
    monkeypatch.delenv(module.LAUNCHER, raising=False)
    module.end_with_launcher()
    monkeypatch.setenv(module.LAUNCHER, str(os.getpid()))
    with pytest.raises(SystemExit):
        module.end_with_launcher()  # our parent is another


@pytest.mark.slow
def test_vlm_train_with_two_processes_equals_one_and_ctrl_c_continues(home, recipe_file, tmp_path, recipe, curve):
    """The real command line, from the first import on."""
    command = [sys.executable, "-m", "vlm.cli.main", "train", "-r", recipe_file, "--run", tmp_path / "two", "-n", "2"]
    command += ["--quiet", "--set", "steps=60", "--set", "save_every=1000"]
    out = tmp_path / "two/train/tiny"
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_metrics(out, first)
    first.send_signal(signal.SIGINT)
    said = first.communicate()[1]
    assert first.returncode == 130 and "rerun the same command" in said and "Traceback" not in said
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.strip() == str(out / "model"), again.stderr
    train(recipe("steps=60", "save_every=1000"), tmp_path / "one", quiet=True)
    losses = [[json.loads(c)["loss"] for c in curve(o)] for o in (out, tmp_path / "one")]
    assert len(losses[0]) == 60 and losses[0][:20] == pytest.approx(losses[1][:20], rel=1e-4)


def wait_for_metrics(out, process):
    end = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < end and process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.fixture
def vlm_launch(recipe_file, monkeypatch, tmp_path):
    """`vlm_launch("--set", ...)`: the result of the command on the tiny recipe, and what it would have become."""
    started = []
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("VLM_EXPECT_WORLD", "0")  # the command sets it: undone after the test
    monkeypatch.setattr(launch_command.os, "execvp", lambda program, words: started.append(words))

    def run(*words, recipe=recipe_file):
        result = CliRunner().invoke(launch_command.app, ["--recipe", str(recipe), *words])
        return result, started

    return run


def test_a_sound_launch_becomes_vlm_train_with_the_same_options(vlm_launch, recipe_file):
    result, started = vlm_launch("--gpus-per-node", "2", "--set", "seed=1", "--quiet")
    assert result.exit_code == 0, result.output
    (words,) = started
    assert words == ["vlm", "train", "--recipe", str(recipe_file), "--set", "seed=1", "--quiet", "--processes", "2"]
    assert result.stderr.strip().endswith(" ".join(words))


def test_a_launch_into_a_folder_hands_the_folder_on(vlm_launch):
    result, started = vlm_launch("--run", "runs/mine", "--set", "seed=1", "--set", "steps=2", "--allow-change")
    assert result.exit_code == 0, result.output
    assert started[0][4:] == ["--run", "runs/mine", "--set", "seed=1", "--set", "steps=2", "--allow-change"]


@pytest.mark.parametrize("more", [[], ["--print"], ["--launcher", "srun"]], ids=["", "--print", "srun"])
def test_a_launch_names_every_fault_at_once_and_starts_nothing(vlm_launch, more):
    wrong = ("trainable=[nothing.*]", "sequence_parallel.size=3", "model.start=pretrained/none")
    result, started = vlm_launch(
        "--nodes", "1", "--gpus-per-node", "4", *more, *[w for s in wrong for w in ("--set", s)]
    )
    assert isinstance(result.exception, ConfigError) and started == []
    for part in ("size 3 does not divide 4 GPUs", "match no parameter: nothing.*", "no checkpoint at pretrained/none"):
        assert part in str(result.exception), part
    assert ("vlm train" in result.stdout) == ("--print" in more), "the line is printed where it was asked for"


def test_a_launch_without_its_data_starts_nothing_and_printing_lists_it(vlm_launch):
    no_data = ("--set", 'data=[{"name": "x", "file": "dataset/none.jsonl", "root": "dataset"}]')
    result, started = vlm_launch(*no_data, "--force")
    assert type(result.exception) is VlmError and "none.jsonl is not here" in str(result.exception) and started == []
    result, started = vlm_launch(*no_data, "--print")
    assert result.exit_code == 0 and "none.jsonl is not here" in result.stderr and started == []
    assert result.stdout.startswith("vlm train --recipe")


def test_hardware_is_judged_by_the_gpus_asked_for_and_by_those_here_only_where_ranks_start_here(vlm_launch):
    need = ("--set", 'hardware={"gpus": 16, "memory_gb": 80}', "--set", "batch.samples=16")
    shape = ("--nodes", "2", "--gpus-per-node", "8")
    assert isinstance(vlm_launch(*need, *shape, "--launcher", "torchrun")[0].exception, HardwareError)
    result, started = vlm_launch(*need, *shape, "--launcher", "srun")
    assert result.exit_code == 0 and len(started) == 1, "the GPUs are on other machines"
    few, started = vlm_launch(*need, "--nodes", "2", "--gpus-per-node", "2", "--launcher", "srun")
    assert isinstance(few.exception, HardwareError) and "4 GPUs asked for" in str(few.exception) and len(started) == 1
    assert vlm_launch(*need, "--nodes", "2", "--gpus-per-node", "2", "--launcher", "srun", "--force")[1][1:]


@pytest.mark.parametrize("words", [["--no-such-option"], ["--processes", "2"]])
def test_options_that_train_cannot_take_stop_the_launch(vlm_launch, words):
    result, started = vlm_launch(*words)
    assert (result.exit_code == 2 or isinstance(result.exception, ConfigError)) and started == []


def test_the_published_values_are_checked_where_they_are_asked_for(vlm_launch, recipe_file, tmp_path):
    difference = {
        "key": "sequence_parallel",
        "ours": "1",
        "published": "3",
        "why": "x",
        "set": {"sequence_parallel.size": 3},
    }
    path = tmp_path / "differs.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(recipe_file.read_text()), "differences": [difference]}))
    shape = ("--gpus-per-node", "2")
    assert vlm_launch(*shape, recipe=path)[0].exit_code == 0
    refused = vlm_launch(*shape, "--published", recipe=path)[0].exception
    assert isinstance(refused, ConfigError) and "size 3 does not divide 2 GPUs" in str(refused)
