"""`vlm doctor`: show what this machine has, and what will run."""

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm.cli.show.say import say_json
from vlm.core.errors import VlmError
from vlm.core.extras import EXTRAS, absent, how_installed, install_line

if TYPE_CHECKING:
    import torch

app = typer.Typer()

Check = tuple[str, bool | None, str]
"""What was checked, whether it works (None: absent and not needed), and what was found."""


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """Check Python, torch, CUDA, flash-attn, DeepSpeed, Slurm, disk, the default model and the attention kernel.

    Exit code 7 when something that everything needs is broken.
    """
    checks = [python(), shadow(), *packages(), *torch_facts(), slurm(), *disk(), default_model(), chromium()]
    if as_json:
        say_json([{"what": w, "ok": ok, "found": f} for w, ok, f in checks])
    else:
        from rich.table import Table

        from vlm.cli.show.screen import Screen, styled

        console = Screen(stderr=True)
        table = Table(show_header=False)
        mark = {True: ("ok", "green"), False: ("broken", "red"), None: ("absent", "dim")}
        for what, ok, found in checks:
            table.add_row(styled(*mark[ok]), what, found)
        console.print(table)
    if any(ok is False for _, ok, _ in checks):
        raise typer.Exit(7)


def python() -> Check:
    """Show the version of Python."""
    return "Python", True, f"{sys.version.split()[0]} at {sys.executable}"


def shadow() -> Check:
    """Check that no other package called `vlm` hides ours: its __init__.py would be found first."""
    spec = importlib.util.find_spec("vlm")
    if spec is not None and spec.origin:
        return "vlm", False, f"shadowed by {spec.origin}: uninstall that package or leave its folder"
    wanted = ("core", "models", "train", "eval", "cli")
    missing = [p for p in wanted if importlib.util.find_spec(f"vlm.{p}") is None]
    on_path = shutil.which("vlm")
    ours = Path(sys.executable).with_name("vlm")
    other = f"; `vlm` on PATH is {on_path}, not {ours}" if on_path and Path(on_path) != ours and ours.exists() else ""
    found = f"missing packages: {missing}" if missing else f"five packages, {how_installed('farlens-cli')}"
    return "vlm", not missing and not other, found + other


def packages() -> list[Check]:
    """Check the libraries that all need, decord, which some machines lack, then each extra."""
    found = [package(name, False) for name in ("torch", "transformers", "timm", "av")]
    what, ok, words = package("decord", None)
    found.append((what, ok, words if ok else "not installed; PyAV reads every video"))
    for extra, modules in EXTRAS.items():
        missing = absent(extra)
        line = f"no {', '.join(missing)}; to add: {install_line(extra)}"
        found.append((f"extra [{extra}]", None if missing else True, line if missing else ", ".join(modules)))
    return found


def package(name: str, absent: bool | None) -> Check:
    """Check one library; `absent` is the verdict when it is not installed."""
    try:
        return name, True, version(name)
    except PackageNotFoundError:
        return name, absent, "not installed"


def torch_facts() -> list[Check]:
    """Check CUDA devices and the kernels that attention `auto` uses, by running them."""
    import torch

    from vlm.models.attention import flash_problem

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    threads = f"{torch.get_num_threads()} threads"
    cuda: Check = (
        "CUDA",
        True if gpus else None,
        ", ".join(gpus) or f"no device; everything runs on the CPU, {threads}",
    )
    device = "cuda" if gpus else "cpu"
    dtype = torch.bfloat16 if gpus else torch.float32
    words = "; ".join(f"{rows} rows: {attention_kernel(rows, device, dtype)}" for rows in ("padded", "packed"))
    problem = flash_problem(device, dtype)
    flash = f"; no flash_attention_2: {problem}" if problem else ""
    return [cuda, ("attention kernel", True, f"{str(dtype).removeprefix('torch.')} on {device}, {words}{flash}")]


def attention_kernel(rows: str, device: str, dtype: "torch.dtype") -> str:
    """Run attention on padded or packed rows; return the backend that `auto` takes and the operator that it calls."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from vlm.models.attention import BACKENDS, choose

    called: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func.__name__.split(".")[0])
            return func(*args, **(kwargs or {}))

    packed = rows == "packed"
    name = choose("auto", packed, device, dtype)
    query = torch.randn(1, 4, 16, 32, device=device, dtype=dtype)
    borders = torch.tensor([0, 6, 16], dtype=torch.int32, device=device) if packed else None
    with Recorder():  # type: ignore[no-untyped-call]  # torch leaves the constructor untyped
        BACKENDS[name].attend(query, query, query, None, borders, None)
    kernels = [c.lstrip("_") for c in called if "attention" in c or "flash" in c] or ["math"]
    return f"{name} ({kernels[0]}" + (f", {len(kernels)} calls for 2 documents)" if packed else ")")


def slurm() -> Check:
    """Ask Slurm for its partitions."""
    if shutil.which("sinfo") is None:
        return "Slurm", None, "no sinfo on PATH"
    configured = "SLURM_CONF" in os.environ or Path("/etc/slurm/slurm.conf").exists()
    try:
        result = subprocess.run(
            ["sinfo", "--noheader", "--format=%P %D %t"], capture_output=True, text=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        return "Slurm", False, "sinfo gave no answer in 20 s"
    if result.returncode and not configured:
        return "Slurm", None, "sinfo is installed, but this machine belongs to no cluster (no slurm.conf)"
    lines = "; ".join(result.stdout.split("\n")[:4]).strip("; ")
    return "Slurm", result.returncode == 0, lines or result.stderr.strip().splitlines()[0]


def disk() -> list[Check]:
    """Check space and write access where files go, and what they take up."""
    from vlm.cli.clean import disk_use
    from vlm.cli.show.leftovers import use_of
    from vlm.core.home import home

    place = home()
    free = shutil.disk_usage(place).free / 1e9
    writable = os.access(place, os.W_OK)
    return [
        ("VLM_HOME", writable and free > 1, f"{place}, {free:.0f} GB free" + ("" if writable else ", not writable")),
        ("disk use", True, f"{use_of(*disk_use(place))}; `vlm clean` shows what may go"),
    ]


def default_model() -> Check:
    """Show which model is meant where none is named."""
    from vlm.cli.local_models import chosen_model, local_models

    try:
        chosen, models = chosen_model(), local_models()
    except VlmError as error:
        return "default model", False, str(error)
    if chosen is not None:
        return "default model", True, f"{chosen}, chosen by `vlm use`"
    if len(models) == 1:
        return "default model", True, f"{models[0].place}, the only one here"
    return "default model", None, f"{len(models)} models here; `vlm use MODEL` chooses one"


def chromium() -> Check:
    """Look for a browser, which only tests need."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return "Chromium", True if found else None, found or "absent; only the browser test of the report needs it"
