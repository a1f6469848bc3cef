"""A long training speaks: plain lines in a log, its file for other processes, its last line."""

import json


def test_a_log_holds_plain_lines_of_steps_and_ends_with_where_the_model_is(vlm, recipe_file, tmp_path):
    for given in ((), ("--quiet",)):
        run = tmp_path / f"run{len(given)}"
        command = ("train", "-r", recipe_file, "--run", run, "--set", "steps=3", *given)
        child = vlm(*command, env={"VLM_PROGRESS_SECONDS": "0"})
        assert child.wait() == 0, child.said
        lines = child.said.splitlines()
        steps = [line for line in lines if " of 3 steps (" in line]
        assert len(steps) == 3 and "tiny: 2 of 3 steps (67 %), loss " in steps[1]
        for word in (", lr ", " tokens/s, ", " GB, ", " left"):
            assert word in steps[1], steps[1]
        assert lines[-1] == f"tiny finished: its model is in {run}/train/tiny/model"
        assert ("parameters" in child.said) is not bool(given), "the plan is chatter"
    again = vlm(*command)
    assert again.wait() == 0
    assert again.said.splitlines()[-1].startswith("tiny was finished before: its model is in ")


def test_a_run_says_in_a_file_how_far_it_is_and_that_it_was_stopped_or_killed(vlm, recipe_file, tmp_path):
    file = tmp_path / "run/train/tiny/progress.json"
    command = ("train", "-r", recipe_file, "--run", tmp_path / "run", "--set", "steps=500")

    def moved() -> bool:
        return (file.parent / "metrics.jsonl").exists() and (file.parent / "metrics.jsonl").read_bytes().count(
            b"\n"
        ) > 2

    child = vlm(*command)
    child.until(moved)
    child.process.terminate()
    assert child.wait() == 0, child.said
    said = json.loads(file.read_text())
    assert (said["ended"], said["total"], said["unit"], said["pid"]) == ("stopped", 500, "steps", child.pid)
    assert 2 < said["done"] < 500
    child = vlm(*command)
    child.until(lambda: json.loads(file.read_text())["pid"] == child.pid)
    child.process.kill()
    child.process.join()
    assert json.loads(file.read_text())["ended"] is None, "nobody could say so"
