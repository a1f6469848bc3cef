"""`vlm push`: the real client uploads to a local hub, what comes back is equal to the bit, and the card is true."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from support import local_hub as hub
from support.model_cards import card_faults, front_matter
from vlm.cli.commands.download import app as download_app
from vlm.cli.commands.push import app
from vlm.cli.find import find_model
from vlm.core.errors import CheckpointError, ConfigError, FetchError, VlmError
from vlm.core.fetch.manifest import MANIFEST
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.load import fingerprint, save_model
from vlm.models.specs import load_preset

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own

TOKENIZER = Path(__file__).parents[1] / "golden/data/tokenizers/internlm2"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with hub.serving() as server:
        hub.point_client(server, monkeypatch, tmp_path, token=hub.WRITE_TOKEN)
        monkeypatch.chdir(tmp_path)
        yield server


def checkpoint(folder: Path) -> Path:
    save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=1), folder, tokenizer=TOKENIZER)
    return folder


@pytest.fixture
def model(server: Any, tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "home/pretrained/mine")


def run(typer_app: Any, *words: object) -> str:
    """Run a command; return its standard output. Its error is raised."""
    done = CliRunner().invoke(typer_app, [str(word) for word in words])
    if done.exception is not None and not (isinstance(done.exception, SystemExit) and not done.exception.code):
        raise done.exception
    return done.stdout


def files(folder: Path) -> dict[str, bytes]:
    kept = {n: c for n, c in hub.tree(folder).items() if not n.startswith(".")}
    return kept


def held(server: Any, repo: str = "ada/cats", branch: str = "main") -> dict[str, bytes]:
    found: dict[str, bytes] = server.hub.repos[repo].commits[server.hub.repos[repo].branches[branch]]
    return found


def test_what_is_pushed_comes_back_equal_to_the_bit_and_is_private(server: Any, model: Path) -> None:
    said = run(app, model, "ada/cats")
    assert "vlm download ada/cats" in said
    repo = server.hub.repos["ada/cats"]
    assert repo.private and len(repo.commits) == 2
    assert {n: c for n, c in held(server).items() if n != "README.md"} == files(model)
    run(download_app, "ada/cats")
    back = find_model("ada/cats")
    assert back.parts[-3:] == ("pretrained", "ada", "cats")
    assert {n: c for n, c in files(back).items() if n != "README.md"} == files(model)
    assert fingerprint(back) == fingerprint(model)
    source = json.loads((back / MANIFEST).read_text())["source"][0]
    assert source["revision"] == repo.branches["main"] and source["repo"] == "ada/cats"


def test_the_same_command_again_sends_nothing_and_makes_no_commit(server: Any, model: Path) -> None:
    run(app, model, "ada/cats")
    sent = len(server.hub.sent)
    assert "holds these files already" in run(app, model, "ada/cats")
    assert len(server.hub.sent) == sent and len(server.hub.repos["ada/cats"].commits) == 2


def test_after_an_interruption_the_same_command_sends_only_the_rest(
    server: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's own pauses
    server.hub.refuse_puts = 1
    with pytest.raises(FetchError, match="500") as error:
        run(app, model, "ada/cats")
    assert "same command" in str(error.value.fix)
    assert held(server) == {}  # nobody sees half of a model
    first = list(server.hub.sent)
    server.hub.refuse_puts = None
    run(app, model, "ada/cats")
    assert len(first) == 1 and server.hub.sent.count(first[0]) == 1
    assert {n: c for n, c in held(server).items() if n != "README.md"} == files(model)


def test_large_files_go_in_parts(server: Any, model: Path) -> None:
    server.hub.part_size = 100_000
    run(app, model, "ada/cats")
    assert sum("/" in name for name in server.hub.sent) > 2
    assert held(server)["model.safetensors"] == (model / "model.safetensors").read_bytes()


def test_public_branch_dry_run_and_json(server: Any, model: Path) -> None:
    said = run(app, model, "ada/cats", "--dry-run")
    assert "model.safetensors" in said and "README.md" in said and "private" in said
    assert not server.hub.sent and "ada/cats" not in server.hub.repos
    facts = json.loads(run(app, model, "ada/cats", "--public", "--revision", "trial", "--json"))
    repo = server.hub.repos["ada/cats"]
    assert not repo.private and facts["commit"] == repo.branches["trial"] != repo.branches["main"]
    assert facts["bytes"] == sum(facts["files"].values()) == sum(map(len, held(server, branch="trial").values()))
    run(download_app, "ada/cats", "--revision", "trial")
    assert fingerprint(find_model("ada/cats")) == fingerprint(model)


def test_what_the_branch_holds_besides_stays_or_goes_on_request(server: Any, model: Path) -> None:
    run(app, model, "ada/cats")
    repo = server.hub.repos["ada/cats"]
    repo.add("main", held(server) | {"model-00001-of-00002.safetensors": b"old"})
    with pytest.raises(ConfigError, match="1 files that are not of this model: model-00001") as error:
        run(app, model, "ada/cats")
    assert "--replace" in str(error.value.fix)
    run(app, model, "ada/cats", "--replace")
    assert "model-00001-of-00002.safetensors" not in held(server)


def test_a_repository_that_is_public_already_gets_nothing_without_public(server: Any, model: Path) -> None:
    server.hub.repos["ada/cats"] = hub.published({"README.md": b"open"})
    with pytest.raises(ConfigError, match="ada/cats is there already, and public") as error:
        run(app, model, "ada/cats")
    assert "--public" in str(error.value.fix) and not server.hub.sent
    run(app, model, "ada/cats", "--public")
    assert "model.safetensors" in held(server)


def test_notes_of_the_hubs_client_and_of_ours_are_not_shared(server: Any, model: Path) -> None:
    (model / ".cache/huggingface").mkdir(parents=True)
    (model / ".cache/huggingface/x.metadata").write_text("x")
    (model / ".gitattributes").write_text("x")
    (model / MANIFEST).write_text("{}")
    run(app, model, "ada/cats")
    assert not [name for name in held(server) if name.startswith(".")]


@pytest.mark.parametrize(
    ("token", "found", "fix"),
    [
        (None, "no token", "hf auth login"),
        (hub.READ_TOKEN, "may not write", "makes? one that writes|make one that writes"),
        ("hf_wrong", "does not accept the token", "hf auth login"),
    ],
)
def test_a_token_that_is_missing_wrong_or_without_rights_is_our_error(
    server: Any, model: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, found: str, fix: str
) -> None:
    import re

    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(FetchError, match=found) as error:
        run(app, model, "ada/cats")
    assert re.search(fix, str(error.value.fix)) and (token or "-") not in str(error.value)
    assert "ada/cats" not in server.hub.repos


def test_a_namespace_of_others_and_a_wrong_name_are_our_errors(server: Any, model: Path) -> None:
    with pytest.raises(FetchError, match="may not write") as refused:
        run(app, model, "bob/cats")
    assert "bob" in str(refused.value.expected)
    with pytest.raises(ConfigError, match="no name of a repository"):
        run(app, model, "a/b/c")


def test_a_hub_that_is_not_there_is_our_error(server: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="cannot be reached") as error:
        run(app, model, "ada/cats")
    assert "HF_ENDPOINT" in str(error.value.fix)


def test_a_model_with_nan_with_a_missing_tensor_or_with_foreign_files_is_refused(server: Any, model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    name = next(iter(weights))
    broken = dict(weights)
    broken[name] = torch.full_like(weights[name], float("nan"))
    less = {key: value for key, value in weights.items() if key != name}
    for state, said in ((broken, f"NaN or infinity in 1 of .*{name}"), (less, f"missing.*{name}")):
        save_file(state, model / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=said):
            run(app, model, "ada/cats")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    (model / "optimizer.pt").write_bytes(b"x")
    (model / "notes").mkdir()
    (model / "notes/secret.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"2 files that are not the model's: notes/secret.txt, optimizer.pt"):
        run(app, model, "ada/cats")
    assert not server.hub.sent and "ada/cats" not in server.hub.repos
    run(app, model, "ada/cats", "--to", "vlm")  # the fix of that error
    assert set(held(server)) == {"README.md", *files(model)} - {"optimizer.pt", "notes/secret.txt"}


def test_adapters_alone_are_refused_with_the_merged_model_named(server: Any, model: Path) -> None:
    run_folder = model.parents[1] / "runs/r/train/r-lora"
    checkpoint(run_folder / "model")
    (run_folder / "adapter").mkdir()
    (run_folder / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapters without their model") as error:
        run(app, run_folder / "adapter", "ada/cats")
    assert f"vlm push {run_folder / 'model'}" in str(error.value.fix)


def test_another_layout_is_converted_first_and_the_copy_leaves_nothing(server: Any, model: Path) -> None:
    (model / "LICENSE").write_text("be kind\n")
    run(app, model, "ada/cats", "--to", "hf")
    pushed = held(server)
    assert json.loads(pushed["config.json"])["model_type"] == "internvl"
    assert "AutoModelForImageTextToText" in pushed["README.md"].decode() and pushed["LICENSE"] == b"be kind\n"
    home = model.parents[1]
    assert not list(home.glob(".vlm-push/model*"))
    with pytest.raises(ConfigError, match="--allow without --to"):
        run(app, model, "ada/cats", "--allow", "strides")


def test_the_card_of_an_untrained_model_says_what_is_not_known(server: Any, model: Path) -> None:
    card = run(app, model, "ada/cats", "--card")
    about = front_matter(card)
    assert card_faults(card) == [] and about["license"] == "unknown" and "base_model" not in about
    for line in ("license unknown", "does not say how it was trained", "No evaluation", "0, 1, 2, ..."):
        assert line in card, line
    assert not server.asked


def test_a_refused_card_is_our_error(server: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.hub_repos.card_faults", lambda card: ['"license" must be one of [...]'])
    with pytest.raises(VlmError, match="license"):
        run(app, model, "ada/cats")
