"""`vlm chat` as a person meets it: one question, a conversation in a terminal, and every kind of bad input."""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm.cli import main as command
from vlm.cli.commands.chat import file_names, note_pictures, split_words
from vlm.core.errors import ConfigError
from vlm.core.text import printable_lines

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny model that never ends an answer by itself."""
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.processor import Processor
    from vlm.models.specs import load_preset

    model = build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("language_model") and parameter.dim() == 2:
                parameter.mul_(6)
        model.language_model.lm_head.weight[Processor(model.spec, TOKENIZER).stop_ids] = 0
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(model, folder, tokenizer=TOKENIZER)
    return folder


@pytest.fixture
def files(tmp_path) -> Path:
    """A folder with pictures good and bad."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
    noise.save(tmp_path / "good.png")
    Image.new("RGB", (60, 60), "blue").save(tmp_path / "blue image.png")
    (tmp_path / "corrupt.png").write_bytes((tmp_path / "good.png").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.fixture
def vlm(files, checkpoint, monkeypatch, capsys):
    """`vlm("good.png", "Why?")`: exit code, standard output, standard error of `vlm chat -m tiny ...`."""
    monkeypatch.setenv("VLM_HOME", str(files))
    monkeypatch.chdir(files)

    def run(*words: str, model: Path = checkpoint):
        monkeypatch.setattr(sys, "argv", ["vlm", "chat", "-m", str(model), "--device", "cpu", *words])
        with pytest.raises(SystemExit) as stop:
            command.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


SHORT = ("--max-new-tokens", "6")


def test_one_question_prints_the_answer_and_nothing_else(vlm, files):
    code, out, err = vlm("good.png", "What is it?", *SHORT)
    assert code == 0 and out.strip() and out.count("\n") == 1
    assert err == "positions: 0, 1, 2, ... (the checkpoint says nothing of V2PE; --stride turns it on)\n"
    assert vlm("good.png", "What is it?", *SHORT)[1] == out
    assert sorted(p.name for p in files.iterdir()) == sorted(
        ["good.png", "blue image.png", "corrupt.png", "text.png", "empty.mp4", "folder"]
    )


def test_each_option_changes_what_it_says(vlm):
    base = ("good.png", "blue image.png", "What is in the pictures?", "--max-new-tokens", "24")
    plain = vlm(*base)[1]
    options = [
        ("--combine",),
        ("--stride", "0.5"),
        ("--system", "Sing."),
        ("--temperature", "3", "--seed", "5"),
        ("--beams", "3"),
        ("--dtype", "bfloat16"),
    ]
    answers = [vlm(*base, *option)[1] for option in options]
    assert all(answer.strip() for answer in answers) and plain not in answers
    assert vlm(*base, "--separate", "--stride", "none", "--device", "auto", "--offload", "disk")[1] == plain
    assert vlm(*base, "--temperature", "3", "--seed", "5")[1] == answers[3]
    assert vlm(*base, "--temperature", "3", "--seed", "6")[1] != answers[3]
    assert vlm(*base, "--temperature", "3", "--seed", "5", "--kv-dtype", "fp8")[1] != answers[3]
    assert vlm(*base, "--temperature", "3", "--seed", "5", "--top-p", "0.01")[1] != answers[3]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("good.png", ""), 2, "the question is empty"),
        (("  ",), 2, "the question is empty"),
        (("gone.png", "Why?"), 2, "no such file: gone.png"),
        (("good.png", "gone.png"), 2, "no such file: gone.png"),
        (("corrupt.png", "Why?"), 3, "corrupt.png cannot be decoded"),
        (("text.png", "Why?"), 3, "text.png is not an image"),
        (("folder", "Why?"), 2, "no picture or video in folder"),
        (("empty.mp4", "Why?"), 3, "empty.mp4 cannot be decoded"),
        (("Why?", "--stride", "many"), 2, "--stride many"),
        (("Why?", "--stride", "-1"), 2, "--stride -1"),
        (("Why?", "--max-tiles", "0"), 2, "max_tiles"),
        (("Why?", "--frames", "0"), 2, "0 frames"),
        (("Why?", "--top-p", "0.5"), 2, "--top-p without --temperature"),
        (("Why?", "--max-new-tokens", "0"), 2, "max_new_tokens 0"),
        (("Why?", "--dtype", "fp8"), 2, "unknown dtype 'fp8'"),
        (("Why?", "--device", "tpu9"), 2, "unknown device 'tpu9'"),
        (("Why?", "--quantize", "2bit"), 2, "unknown quantization '2bit'"),
        (("Why?", "--offload", "cpu"), 2, "the model runs on the CPU"),
        (("Why?", "--kv-offload"), 2, "the model runs on the CPU"),
        (("Why?", "--kv-dtype", "int3"), 2, "unknown KV dtype 'int3'"),
    ],
)
def test_bad_input_is_an_error_with_its_code_and_no_traceback(words, code, message, vlm):
    got, out, err = vlm(*words)
    assert (got, out) == (code, "")
    assert err.startswith("error: ") and message in err and "Traceback" not in err
    assert "expected:" in err or "fix:" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU")
@pytest.mark.parametrize("device", ["cuda", "map"])
def test_a_gpu_that_is_not_there_is_exit_code_7(device, vlm):
    code, _, err = vlm("Why?", "--device", device)
    assert code == 7 and "torch sees 0 CUDA GPUs" in err and "--device cpu" in err


def test_a_checkpoint_without_tokenizer_says_so_before_its_weights_are_read(vlm, checkpoint, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    code, _, err = vlm("Why?", model=bare)
    assert code == 5 and f"no tokenizer in {bare}" in err and "fix: download the checkpoint again" in err


def test_words_are_files_then_a_question(files, monkeypatch):
    monkeypatch.chdir(files)
    assert split_words([]) == ([], None)
    assert split_words(["good.png"]) == ([Path("good.png")], None)
    assert split_words(["good.png", "What?"]) == ([Path("good.png")], "What?")
    assert split_words(["What is a .png?"]) == ([], "What is a .png?")
    assert file_names("blue image.png", "/image FILE") == [Path("blue image.png")]
    assert file_names("'blue image.png' good.png", "/image FILE") == [Path("blue image.png"), Path("good.png")]
    for rest in ("", "'half"):
        with pytest.raises(ConfigError, match="/image FILE"):
            file_names(rest, "/image FILE")


# in a terminal --------------------------------------------------------------------------------------------------------


def own_terminal() -> None:
    """In the child: a session with this terminal, in which Ctrl-C works (a shell's background jobs ignore it)."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A command on a pseudo-terminal: what a person sees and types."""

    def __init__(self, *words: str, home: Path):
        self.screen, keyboard = os.openpty()
        env = {**os.environ, "VLM_HOME": str(home), "TERM": "dumb", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vlm.cli.main", *words],
            stdin=keyboard,
            stdout=keyboard,
            stderr=keyboard,
            cwd=home,
            env=env,
            preexec_fn=own_terminal,
        )
        os.close(keyboard)

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def read(self, until: str, timeout: float = 90) -> list[str]:
        """What appears until the text ends so, in the pieces in which it came."""
        pieces: list[str] = []
        end = time.monotonic() + timeout
        while not "".join(pieces).endswith(until):
            left = end - time.monotonic()
            assert left > 0 and select.select([self.screen], [], [], left)[0], (
                f"no {until!r} behind {''.join(pieces)!r}"
            )
            pieces.append(os.read(self.screen, 4096).decode(errors="replace").replace("\r\n", "\n"))
        return pieces

    def begin(self, line: str, timeout: float = 90) -> None:
        """Type a line and return when something more than its echo is there: both may come in one piece."""
        self.type(line + "\n")
        shown, end = "", time.monotonic() + timeout
        while len(shown) <= len(line) + 1:
            left = end - time.monotonic()
            assert left > 0 and select.select([self.screen], [], [], left)[0], f"only {shown!r}"
            shown += os.read(self.screen, 4096).decode(errors="replace").replace("\r\n", "\n")
        assert shown.startswith(line + "\n")

    def idle(self) -> None:
        """Return when the program waits for keys: its main thread has slept at every look for 0.3 s."""
        asleep, end = 0, time.monotonic() + 90
        stat = Path(f"/proc/{self.process.pid}/stat")
        while asleep < 30:
            assert time.monotonic() < end, "it never waits for keys"
            asleep = asleep + 1 if stat.read_text().rpartition(") ")[2].startswith("S") else 0
            time.sleep(0.01)

    def ask(self, line: str) -> str:
        """Type a line; what is printed up to the next prompt."""
        self.type(line + "\n")
        return "".join(self.read("\n> ")).removeprefix(line).removesuffix("\n> ").strip()


def test_a_conversation_in_a_terminal(files, checkpoint):
    """Streams, survives a corrupt picture and Ctrl-C, resets, saves."""
    # so many tokens that a reply does not end while a busy machine runs this test's process late
    terminal = Terminal("chat", "-m", str(checkpoint), "--max-new-tokens", "600", home=files)
    try:
        assert "/image FILE" in "".join(terminal.read("> "))
        assert "corrupt.png cannot be decoded" in terminal.ask("/image corrupt.png")
        assert terminal.ask("/image blue image.png") == ""

        terminal.type("What is it?\n")
        pieces = terminal.read("\n> ")
        answer = "".join(pieces).removeprefix("What is it?\n").removesuffix("\n> ")
        assert max(map(len, pieces)) < len(answer) / 2  # as it is made, not at once
        history = terminal.ask("/history")
        assert f"user: [{files / 'blue image.png'}]\nWhat is it?\nassistant: {answer.strip()}" in history

        terminal.begin("And now?")
        terminal.type("\x03")
        assert "(stopped; this turn is not in the conversation)" in "".join(terminal.read("\n> "))
        assert "And now?" not in terminal.ask("/history")

        assert "saved kept.json" in terminal.ask("/save kept.json")
        assert "folder cannot be written" in terminal.ask("/save folder")
        assert "unknown command /imge" in terminal.ask("/imge x")
        terminal.ask("/reset")
        assert terminal.ask("/history") == ""
        terminal.type("half a line")
        terminal.read("half a line")  # the terminal's echo, whether the program reads or not
        terminal.idle()  # Python loses a Ctrl-C between the prompt and the wait for keys
        terminal.type("\x03")
        terminal.read("> ")
        terminal.type("/quit\n")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.screen)
    kept = json.loads((files / "kept.json").read_text())
    assert [m["role"] for m in kept] == ["user", "assistant"]
    assert printable_lines(kept[1]["content"][0]["text"]) == answer.strip()  # the screen escapes what it would obey


def test_a_picture_that_a_viewer_shows_otherwise_is_said_in_one_line(files, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 9)).save(files / "phone.jpg", exif=exif)
    Image.new("RGBA", (9, 9)).save(files / "logo.png")
    note_pictures([files / name for name in ("good.png", "phone.jpg", "logo.png")])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "phone.jpg is stored turned (EXIF orientation 6)" in said[0]
    assert "logo.png has transparent parts" in said[1]
