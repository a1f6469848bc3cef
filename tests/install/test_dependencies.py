"""Each library that is imported is declared where it is imported, each that is declared is needed; extras are true."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from vlm.core import extras
from vlm.core.errors import HardwareError
from vlm.core.extras import EXTRAS, absent, extra_of, install_line, of_import, require

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "models", "train", "eval", "cli")
BELOW = {
    "core": (),
    "models": ("core",),
    "train": ("core", "models"),
    "eval": ("core", "models"),
    "cli": ("core", "models", "train", "eval"),
}
NAMES = {  # module -> distribution, where the names differ; the libraries need not be installed
    "PIL": "pillow",
    "english_words": "english-words",
    "flash_attn": "flash-attn",
    "huggingface_hub": "huggingface-hub",
    "lmms_eval": "lmms-eval",
    "mlflow": "mlflow-skinny",
    "prometheus_client": "prometheus-client",
    "snakemake_executor_plugin_slurm": "snakemake-executor-plugin-slurm",
    "snakemake_interface_logger_plugins": "snakemake-interface-logger-plugins",
    "vlmeval": "ms-vlmeval",
    "yaml": "pyyaml",
    "pydantic_core": "pydantic",  # the same project, in one version
}
INDIRECT = {  # distribution -> (file, words there) that need it without an import
    "gguf": ("packages/models/src/vlm/models/checkpoint/assemble.py", "gguf_file="),
    "openpyxl": ("packages/eval/src/vlm/eval/saved/predictions.py", "read_excel"),
    "snakemake-executor-plugin-slurm": ("profiles/slurm/config.yaml", "executor: slurm"),
    "tensorboard": ("packages/train/src/vlm/train/run/boards.py", "from torch.utils.tensorboard import"),
    "wn": ("packages/eval/src/vlm/eval/measures/english.py", 'find_spec("wn")'),
    "flash-attn": ("packages/models/src/vlm/models/attention/local.py", 'import_module("flash_attn")'),
}
EXTRA_TABLE = ROOT / "packages/core/src/vlm/core/extras.py"


def name_of(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower()


def project(package: str) -> dict:
    return tomllib.loads((ROOT / f"packages/{package}/pyproject.toml").read_text())["project"]


def imports(package: str) -> dict[str, set[str]]:
    """Library -> files of a package that import it, anywhere in them, for types alone too."""
    found = defaultdict(set)
    for path in (ROOT / f"packages/{package}/src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"vlm"}:
                found[NAMES.get(top, top)].add(str(path.relative_to(ROOT)))
    return found


PROJECT = {package: project(package) for package in PACKAGES}
BASE = {package: {name_of(d) for d in PROJECT[package]["dependencies"]} for package in PACKAGES}
EXTRA = {
    package: {extra: [*needs] for extra, needs in PROJECT[package].get("optional-dependencies", {}).items()}
    for package in PACKAGES
}
IMPORTS = {package: imports(package) for package in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_imported_library_is_declared_by_its_package_or_one_below(package: str) -> None:
    declared = {name_of(d) for needs in EXTRA[package].values() for d in needs}
    for below in (package, *BELOW[package]):
        declared |= BASE[below]
    assert {name: files for name, files in IMPORTS[package].items() if name not in declared} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_declared_library_is_needed_by_its_package(package: str) -> None:
    declared = BASE[package] | {name_of(d) for needs in EXTRA[package].values() for d in needs}
    ours = {f"farlens-{below}" for below in BELOW[package]}
    unused = sorted(declared - ours - IMPORTS[package].keys())
    idle = [
        name
        for name in unused
        if name not in INDIRECT or INDIRECT[name][1] not in (ROOT / INDIRECT[name][0]).read_text()
    ]
    assert not idle
    assert ours <= declared


def test_the_names_of_modules_are_those_of_the_installed_libraries() -> None:
    for module, names in packages_distributions().items():
        if module in NAMES and module != "pydantic_core":
            assert NAMES[module] in [name.lower().replace("_", "-") for name in names]


def test_the_table_of_extras_is_what_the_packages_declare() -> None:
    brought: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for extra, needs in EXTRA[package].items():
            brought[extra] += [need for need in needs if not need.startswith("farlens-")]
    assert {extra: sorted(modules.values()) for extra, modules in EXTRAS.items()} == {
        extra: sorted(needs) for extra, needs in brought.items()
    }
    for modules in EXTRAS.values():
        for module, need in modules.items():
            assert NAMES.get(module, module) == name_of(need)


def test_the_command_line_and_the_workspace_have_every_extra() -> None:
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert EXTRA["cli"].keys() == EXTRAS.keys() == workspace.keys()
    assert workspace == {extra: [f"farlens-cli[{extra}]"] for extra in EXTRAS}
    for package in ("models", "train", "eval"):
        for extra in EXTRA[package]:
            assert EXTRA["cli"][extra] == [f"farlens-{package}[{extra}]"]


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_which_pythons_it_runs_on(package: str) -> None:
    assert PROJECT[package]["requires-python"] == ">=3.11"
    classifiers = PROJECT[package]["classifiers"]
    assert [c for c in classifiers if "3." in c] == [f"Programming Language :: Python :: 3.{n}" for n in range(11, 15)]


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [("linux", "x86_64", True), ("linux", "aarch64", False), ("darwin", "arm64", False), ("win32", "AMD64", True)],
)
def test_decord_is_asked_for_only_where_it_has_wheels(system: str, machine: str, wanted: bool) -> None:
    from packaging.requirements import Requirement

    (line,) = [d for d in PROJECT["core"]["dependencies"] if d.startswith("decord")]
    marker = Requirement(line).marker
    assert marker is not None
    assert marker.evaluate({"sys_platform": system, "platform_machine": machine}) is wanted


def hide(code: str, *modules: str) -> subprocess.CompletedProcess[str]:
    """Run code with some modules missing."""
    begin = f"import sys; sys.modules |= dict.fromkeys({modules!r})\n"
    return subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, timeout=240)


BROUGHT = {"anyio", "jinja2", "markupsafe", "regex"}
"""Modules of extras that libraries of the base bring: httpx, torch and transformers."""

ALL = tuple(module for modules in EXTRAS.values() for module in modules if module not in BROUGHT)

VLM = "sys.argv = ['vlm', *{words!r}]\nfrom vlm.cli.main import main\nmain()"


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["list", "weights"],
        ["list", "benchmarks"],
        ["list", "recipes"],
        ["recipe", "check", "v2pe-32k"],
        ["download", "--benchmark", "pope", "--dry-run"],
        pytest.param(["plan", "quickstart-v2pe-sft"], marks=pytest.mark.slow),  # imports torch
    ],
)
def test_without_any_extra_what_needs_none_works(words: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    done = hide(VLM.format(words=words), *ALL)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["serve", "-m", "none"], "serve"),
        (["eval", "pope", "-m", "none"], "eval"),
        (["report", "runs/none"], "eval"),
        (["eval", "score", "pope", "none.jsonl"], "eval"),
        (["reproduce", "v2pe", "--dry-run"], "workflow"),
        (["train", "-r", "quickstart-v2pe-sft"], "train"),
    ],
)
def test_without_its_extra_a_command_names_the_line_that_installs_it(words, extra, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = hide(VLM.format(words=words), *ALL)
    assert (done.returncode, "Traceback" in done.stderr) == (7, False), done.stderr
    assert f"fix: {install_line(extra)}" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_import_of_an_extra_that_fails_anywhere_is_an_error_with_the_line() -> None:
    patched = "import vlm.cli.main as m\ndef app(): import bitsandbytes\nm.app = app\nm.main()"
    done = hide(patched, "bitsandbytes")
    assert done.returncode == 7 and f"fix: {install_line('quant')}" in done.stderr


def test_a_module_that_no_extra_brings_is_a_fault_of_ours() -> None:
    done = hide("import vlm.cli.main as m\ndef app(): import no_such_module\nm.app = app\nm.main()")
    assert done.returncode == 1 and "fault of vlm" in done.stderr and "Traceback" in done.stderr


def test_a_library_of_an_extra_is_known_by_each_of_its_modules() -> None:
    assert extra_of("snakemake.cli") == "workflow" and extra_of("numpy") is None
    found = of_import(ModuleNotFoundError("no", name="deepspeed.ops"))
    assert found is not None and found.fix == install_line("train")
    assert of_import(ModuleNotFoundError("no", name="numpy")) is None


class Installed:
    """A package as it was installed: the files that pip and uv write."""

    def __init__(self, name: str, extras: list[str], **files: str):
        self.metadata = type("Metadata", (dict,), {"get_all": lambda self, key: extras})({"Name": name})
        self.files = files

    def read_text(self, name: str) -> str | None:
        return self.files.get(name.removesuffix(".json"))


PIP = f"{sys.executable} -m pip install"


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"INSTALLER": "pip\n"}, f'{PIP} "farlens-cli[serve]"'),
        ({"INSTALLER": "uv\n"}, f'uv pip install --python {sys.executable} "farlens-cli[serve]"'),
        ({"direct_url": '{"url": "file:///dist/farlens_cli-0.1.0-py3-none-any.whl"}'}, f'{PIP} "farlens-cli[serve]"'),
        (
            {"direct_url": '{"url": "file://ROOT/packages/cli", "dir_info": {"editable": true}}'},
            f'{PIP} -c ROOT/constraints.txt "farlens-cli[serve]"',
        ),
    ],
    ids=["wheel", "uv", "wheel from a file", "editable"],
)
def test_the_line_fits_the_installation(files: dict[str, str], line: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "constraints.txt").touch()
    files = {name: text.replace("ROOT", str(tmp_path)) for name, text in files.items()}
    found = Installed("farlens-cli", ["serve"], **files)
    monkeypatch.setattr(extras, "_installed", lambda name: found if name == "farlens-cli" else None)
    monkeypatch.setattr(sys, "prefix", "/a/virtual/environment")
    assert install_line("serve") == line.replace("ROOT", str(tmp_path))


def test_a_source_tree_that_is_not_installed_names_the_libraries(monkeypatch) -> None:
    monkeypatch.setattr(extras, "_installed", lambda name: None)
    monkeypatch.setattr(sys, "prefix", "/a/virtual/environment")
    assert install_line("train") == f'{PIP} "deepspeed" "peft"'
    assert install_line("flash") == f'{PIP} --no-build-isolation "flash-attn"'


def test_missing_libraries_are_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert absent("train") == ["peft"]
    with pytest.raises(HardwareError, match="training needs peft, which is not installed"):
        require("train", "training")
