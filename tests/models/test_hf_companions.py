"""A folder in the `-hf` layout opens in transformers as it is: ids, pixels, logits and texts are ours."""

import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, pipeline

from vlm.core.errors import CheckpointError
from vlm.core.sample.chat import get_template, prompt_text
from vlm.core.sample.records import image, text
from vlm.core.synth.train_tokenizer import train_tokenizer
from vlm.models.answers import answer, reply
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.hf_companions import chat_template
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import load_model, save_model
from vlm.models.processor import load_processor
from vlm.models.session import user_turn
from vlm.models.specs import load_preset

SIZES = [(200, 100), (60, 60), (50, 300)]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, golden_data):
    """A tokenizer that we trained, and a published one (sentencepiece)."""
    folder = tmp_path_factory.mktemp("tokenizer")
    turns = [[{"from": "human", "value": f"what is {i}?"}, {"from": "gpt", "value": "a cat"}] for i in range(30)]
    (folder / "t.jsonl").write_text("".join(json.dumps({"conversations": t}) + "\n" for t in turns))
    train_tokenizer(folder / "trained", [folder / "t.jsonl"], vocab_size=320)
    return {
        "trained": folder / "trained",
        "published": golden_data / "tokenizers" / "internlm2",
        "qwen2": golden_data / "tokenizers" / "qwen2",
    }


@pytest.fixture(scope="module")
def make(tokenizers, tmp_path_factory):
    """`make(kind, rule=..., system=...)`: (checkpoint of ours, its -hf export)."""

    def build_both(kind="trained", *, preset="tiny-internvl2", rule=None, **changes):
        folder = tmp_path_factory.mktemp("model")
        spec = load_preset(preset)
        changes["image_rule"] = spec.image_rule.model_copy(update=rule or {})
        model = build(spec.model_copy(update=changes), tokenizer=tokenizers[kind], seed=1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith("language_model") and parameter.dim() == 2:
                    parameter.mul_(6)
        save_model(model, folder / "ours", tokenizer=tokenizers[kind])
        return folder / "ours", convert(folder / "ours", "hf", folder / "hf")

    return build_both


def pictures(folder):
    for size in SIZES:
        path = folder / f"{size[0]}.png"
        Image.linear_gradient("L").resize(size).convert("RGB").save(path)
        yield path


RULES = {
    "tiles": ("trained", {}),
    "published tokenizer": ("published", {}),
    "square": ("trained", {"rule": {"kind": "square"}}),
    "own system text": ("trained", {"system": 'Say "yes" or "no" {{ now }}.\n'}),
    "no system text": ("trained", {"system": ""}),
    "another template": ("trained", {"template": "smollm2"}),
    "Hermes": ("trained", {"template": "Hermes-2"}),
    "InternVL3": ("qwen2", {"preset": "tiny-internvl3"}),
    "quickstart": ("trained", {"preset": "quickstart-v2pe"}),
}


@pytest.mark.parametrize("case", RULES)
def test_an_export_opens_in_transformers_and_computes_the_same(case, make, tmp_path):
    kind, changes = RULES[case]
    ours, hf = make(kind, **changes)
    processor, model = load_processor(ours), load_model(ours)
    theirs = AutoProcessor.from_pretrained(hf)
    theirs.image_processor = AutoImageProcessor.from_pretrained(hf, backend="pil")  # the default differs by a few units
    published = AutoModelForImageTextToText.from_pretrained(hf).eval()
    for path in pictures(tmp_path):
        encoded = processor.encode([user_turn("What is it?", [path], [], processor.template)])
        content = [{"type": "image", "path": str(path)}, {"type": "text", "text": "What is it?"}]
        batch = theirs.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert batch["input_ids"][0].tolist() == encoded.input_ids.tolist()
        torch.testing.assert_close(batch["pixel_values"], processor.pixels(encoded.pixels), atol=2e-6, rtol=0)
        with torch.no_grad():
            want = published(**batch).logits[0, -1]
            made = published.generate(**batch, max_new_tokens=12, do_sample=False)
            got = model(batch["input_ids"], pixel_values=processor.pixels(encoded.pixels)).logits[0, -1]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
        new, ours_said = made[0, batch["input_ids"].shape[1] :], answer(model, processor, [encoded], max_new_tokens=12)
        assert reply(processor, new.tolist(), processor.stop_ids).text == ours_said[0].text
        if kind == "trained":  # transformers reads a sentencepiece file's bytes that are no character in its own way
            assert theirs.decode(new, skip_special_tokens=True) == ours_said[0].text


def test_a_pipeline_answers(make, tmp_path):
    hf = make()[1]
    path = next(pictures(tmp_path))
    content = [{"type": "image", "path": str(path)}, {"type": "text", "text": "What is it?"}]
    run = pipeline("image-text-to-text", model=str(hf))
    [said] = run(text=[{"role": "user", "content": content}], max_new_tokens=8, return_full_text=False)
    assert isinstance(said["generated_text"], str)


def test_an_answer_ends_where_ours_ends(make):
    """transformers stops at the ids of generation_config.json: the template's, then the tokenizer's."""
    ours, hf = make()
    settings = json.loads((hf / "generation_config.json").read_text())
    assert settings == {"eos_token_id": [4, 2], "bos_token_id": 1, "pad_token_id": 0}
    assert sorted(settings["eos_token_id"]) == load_processor(ours).stop_ids


def test_generation_settings_of_the_source_stay(make, tmp_path):
    ours = shutil.copytree(make()[0], tmp_path / "ours")
    (ours / "generation_config.json").write_text('{"temperature": 0.7, "eos_token_id": 2}')
    settings = json.loads((convert(ours, "hf", tmp_path / "hf") / "generation_config.json").read_text())
    assert settings["temperature"] == 0.7 and settings["eos_token_id"] == [4, 2]


def test_nothing_of_other_peoples_code_is_named(make, tmp_path):
    ours = shutil.copytree(make()[0], tmp_path / "ours")
    path = ours / "tokenizer_config.json"
    more = {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "chat_template": "{{ 1 }}"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    config = json.loads((convert(ours, "hf", tmp_path / "hf") / "tokenizer_config.json").read_text())
    assert "auto_map" not in config and "chat_template" not in config and config["bos_token"] == "<s>"


@pytest.mark.parametrize("rule", [{}, {"kind": "square"}, {"max_tiles": 3, "mean": (0.5, 0.5, 0.5), "std": (0.3,) * 3}])
def test_what_transformers_saves_again_is_read_with_all_its_settings(rule, make, tmp_path):
    ours, hf = make(rule=rule)
    AutoModelForImageTextToText.from_pretrained(hf).save_pretrained(tmp_path / "saved")
    AutoProcessor.from_pretrained(hf).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "preprocessor_config.json").exists()
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config.pop("vlm", None)  # what the published keys say by themselves
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    want, got = read_layout(ours).spec.image_rule, read_layout(tmp_path / "saved").spec.image_rule
    if want.kind == "square":
        want = want.model_copy(update={"max_tiles": 1})
    assert got.model_copy(update={"mean": want.mean, "std": want.std}) == want
    assert got.mean == pytest.approx(want.mean) and got.std == pytest.approx(want.std)
    before, after = load_model(ours).state_dict(), load_model(tmp_path / "saved").state_dict()
    assert all(torch.equal(t, after[k]) for k, t in before.items())
    load_processor(tmp_path / "saved")


def test_files_of_an_image_processor_that_contradict_each_other_are_named(make, tmp_path):
    hf = shutil.copytree(make()[1], tmp_path / "hf")
    path = hf / "processor_config.json"
    nested = {"image_processor": {"max_patches": 7, "min_patches": 1}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **nested}))
    with pytest.raises(CheckpointError, match="contradict each other: max_patches 4 and 7"):
        read_layout(hf)
    (hf / "preprocessor_config.json").unlink()
    config = json.loads((hf / "config.json").read_text())
    config.pop("vlm", None)
    (hf / "config.json").write_text(json.dumps(config))
    assert read_layout(hf).spec.image_rule.max_tiles == 7


def rendered(template, messages, **settings):
    from transformers.utils.chat_template_utils import _compile_jinja_template

    made = _compile_jinja_template(template)
    return made.render(messages=messages, bos_token="", add_generation_prompt=True, **settings)


CONTENTS = {
    "text": [text("Hi {% raw %}")],
    "an image in front": [image("a"), text("\n"), text("What?")],
    "an image in the middle": [text("See "), image("a"), text(" here")],
    "two images": [image("a"), text("\n"), image("b"), text("\n"), text("Which?")],
    "blanks around": [text("  Hi \n")],
}


@pytest.mark.parametrize("name", ["internlm2-chat", "Hermes-2", "smollm2", "llava_v1"])
@pytest.mark.parametrize("content", CONTENTS)
def test_a_chat_template_writes_our_prompt(name, content, golden_data):
    parts = CONTENTS[content]
    turns = [("user", parts), ("assistant", [text("Yes.")]), ("user", [text("Sure?")])]
    ours = prompt_text(
        [{"role": role, "content": said} for role, said in turns],
        name,
        "S.",
        generation_prompt=True,
        images=["<IMG_CONTEXT>"] * sum(p["type"] == "image" for p in parts),
    )
    theirs = [{"role": role, "content": said} for role, said in turns]
    made = chat_template(get_template(name), "S.", bos=False)
    assert rendered(made, theirs) == ours
    system = [{"role": "system", "content": [text("T.")]}]
    assert rendered(made, system + theirs) == ours.replace("S.", "T.", 1)


def test_a_newline_after_an_image_is_added_once():
    made = chat_template(get_template("internlm2-chat"), "", bos=False)
    for question in ("What?", "\nWhat?"):
        said = rendered(made, [{"role": "user", "content": [{"type": "image"}, text(question)]}])
        assert "<IMG_CONTEXT>\nWhat?<|im_end|>" in said
