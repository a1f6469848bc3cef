"""Fuzz one reader for some minutes: python tests/fuzz/run.py records --minutes 30.

Every input that ends in an outcome not seen before is kept in `corpus/`, which `test_corpus.py` reads again. A find (an
exception that is no VlmError, a broken promise, a read that takes 20 seconds) is kept too, in its smallest form, and
printed; the exit code is then 1.
"""

import argparse
import base64
import hashlib
import json
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.targets import TARGETS, Files, Target
from vlm.core.errors import VlmError

CORPUS = Path(__file__).with_name("corpus")
SECONDS, WAIT = 20, 300
"""Longest processor time of a read, and longest time by the clock: a busy machine is no find."""


class Hang(BaseException):
    """A read took longer than SECONDS."""


def pack(files: Files) -> str:
    """Return files as JSON text; what is no UTF-8 is in base64."""
    packed: dict[str, str | dict[str, str]] = {}
    for name, content in files.items():
        try:
            packed[name] = content.decode()
        except UnicodeDecodeError:
            packed[name] = {"base64": base64.b64encode(content).decode()}
    return json.dumps(packed, indent=1, sort_keys=True)


def unpack(text: str) -> Files:
    """Return what `pack` packed."""
    packed = json.loads(text)
    return {n: c.encode() if isinstance(c, str) else base64.b64decode(c["base64"]) for n, c in packed.items()}


def read(target: Target, files: Files, world: Path) -> str:
    """Put files through a reader and return the kind of its outcome. Raises what is a find."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Hang(f"longer than {SECONDS} s of processor time, or {WAIT} s")

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    before = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        signal.alarm(WAIT)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            target.read(folder, world)
        except VlmError as error:
            first = error.found.replace(str(folder), "").split("\n")[0].split("(found")[0]
            words = re.findall(r"[a-z]{2,}", re.sub(r"(['\"]).*?\1|\{.*\}", "", first))
            return f"{type(error).__name__}: {' '.join(words)[-50:]}"
        return "read"
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run the fuzzer of one target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--keep", type=int, default=60, help="most inputs to keep in the corpus")
    args = parser.parse_args()
    target, until = TARGETS[args.target], time.monotonic() + 60 * args.minutes
    folder = CORPUS / args.target
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    outcomes: Counter[str] = Counter()
    finds: dict[str, Files] = {}
    last: list[Files] = []
    round_, runs = int(time.time()), 0
    with tempfile.TemporaryDirectory(prefix="fuzz-world-") as world:
        for file in folder.glob("*.json"):
            outcomes[read(target, unpack(file.read_text()), Path(world))] = 0
        strategy = target.files(Path(world))
        while time.monotonic() < until:
            round_ += 1
            last.clear()

            @seed(round_)
            @settings(
                max_examples=300,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
                print_blob=False,
                report_multiple_bugs=False,
            )
            @given(strategy)
            def one(files: Files) -> None:
                nonlocal runs
                if time.monotonic() > until:
                    return
                runs += 1
                last[:] = [files]
                outcome = read(target, files, Path(world))
                if outcome not in outcomes and len(outcomes) < args.keep and len(pack(files)) < 20_000:
                    name = hashlib.sha256(outcome.encode()).hexdigest()[:12]
                    (folder / f"{name}.json").write_text(pack(files))
                outcomes[outcome] += 1

            try:
                one()
            except Flaky:
                continue  # the time ended while a find was made smaller
            except (Exception, Hang) as error:  # noqa: BLE001  any exception is a find
                said = traceback.format_exc()
                kind = f"{type(error).__name__}: {error}"[:300]
                place = [line for line in said.splitlines() if "/vlm/" in line]
                mark = f"{type(error).__name__} {place[-1].strip() if place else ''}"
                if mark not in finds:
                    finds[mark] = last[0]
                    name = "find-" + hashlib.sha256(mark.encode()).hexdigest()[:12]
                    (folder / f"{name}.json").write_text(pack(last[0]))
                    print(f"FIND {name} {kind}\n  {mark}\n  {str(last[0])[:600]}", flush=True)
    print(f"{args.target}: {runs} inputs, {len(outcomes)} kinds of outcome, {len(finds)} finds")
    for outcome, n in outcomes.most_common():
        print(f"  {n:7} {outcome}")
    return bool(finds)


if __name__ == "__main__":
    sys.exit(main())
