"""A second set of fixtures made from ours: other names, counts, nesting, pictures, layers.

`write_set(folder)` returns what it wrote; `write_set(folder, corrupt=True)` spoils one value of each section.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden.conftest import DATA
from golden.fixtures import Entry, Fixtures, Json, find_fixtures
from golden.model_inputs import load_tensors
from golden.vision_outputs import apply
from PIL import Image
from safetensors.torch import save_file

from vlm.core.sample.tiling import IMAGENET, ImageRule, cut_tiles, plan_tiles
from vlm.models.checkpoint.load import load_model
from vlm.models.projector import pixel_unshuffle
from vlm.models.vision.intern_vit import InternVit

Array = np.ndarray[Any, Any]
TOKENIZERS = {
    "internlm2": "nested/tokens/first", "hermes2": "second", "llama": "lang/deep/third", "llama-legacy": "4",
    "qwen2": "nested/fifth",
}  # fmt: skip


@dataclass
class Written:
    """What a set holds: ids of its entries by section, and of those with a spoiled value."""

    ids: dict[str, list[str]] = field(default_factory=dict)
    spoiled: dict[str, list[str]] = field(default_factory=dict)

    def add(self, section: str, name: str, spoiled: bool = False) -> None:
        self.ids.setdefault(section, []).append(name)
        if spoiled:
            self.spoiled.setdefault(section, []).append(name)


def pick(entries: list[Entry], step: int, *keep: str) -> list[Entry]:
    """Every `step`-th entry, and those whose id holds one of `keep`."""
    return [entry for i, entry in enumerate(entries) if i % step == 0 or any(k in entry.id for k in keep)]


def set_last(key: str, change: Callable[[Any], Any]) -> Callable[[Json], None]:
    def spoil(case: Json) -> None:
        case[key] = [*case[key][:-1], change(case[key][-1])]

    return spoil


def spoil_pack(case: Json) -> None:
    case["packs"][0]["segments"][0]["sample"] += 1


def spoil_variant(case: Json) -> None:
    next(iter(case["variants"].values()))["abs_sum"] *= 1.001


SPOILERS: dict[str, tuple[str, Callable[[Json], None]]] = {
    "positions/cases": ("fix_one_image_middle_s4", set_last("positions", lambda p: p + 0.5)),
    "packing/cases": ("basic", spoil_pack),
    "packing/micro_batches": ("micro_batch_1_of_2", lambda c: c["input_ids"][0].__setitem__(0, 7)),
    "packing/len2weight": ("len2weight3", lambda c: c.update(square=c["square"] + 0.01)),
    "tiling/cases": ("cases12", lambda c: c.update(num_tiles=c["num_tiles"] + 1)),
    "tiling/images": ("image1", lambda c: c["tile_uint8_sha256"].reverse()),
    "tiling/convllava_images": ("image1", spoil_variant),
    "templates/training": ("internlm2-chat/single_round_image", set_last("labels", lambda i: i + 1)),
    "templates/generation": ("chat/two_images", set_last("input_ids", lambda i: i + 1)),
    "templates/batches": ("batch_chat/left_padded", lambda c: c["input_ids"][1].__setitem__(-1, 7)),
    "templates/collator": ("llava_collator/llama", lambda c: c["labels"][0].__setitem__(3, 5)),
    "sharding/splits": ("splits1", lambda c: c["ring"].reverse()),
    "sharding/padding": ("ring_padding1", lambda c: c["out_labels"].__setitem__(2, 5)),
}
"""Section -> id of the entry to spoil, and how."""

FILES = {
    "positions/cases": "a/b/one.json",
    "packing/cases": "rows/two.json",
    "packing/micro_batches": "three.json",
    "packing/len2weight": "rows/weights/four.json",
    "tiling/cases": "five.json",
    "tiling/images": "pictures/six.json",
    "tiling/convllava_images": "pictures/six.json",
    "templates/training": "lang/seven.json",
    "templates/generation": "lang/deep/eight.json",
    "templates/batches": "lang/deep/batches.json",
    "templates/collator": "nine.json",
    "sharding/splits": "rows/ten.json",
    "sharding/padding": "eleven.json",
}


def write_json(path: Path, content: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**old, **content}), encoding="utf-8")


def prefix_of(root: Path, path: Path) -> str:
    where = path.relative_to(root).parent
    return "" if where == Path() else f"{where}/"


def write_sections(root: Path, own: Fixtures, written: Written, corrupt: bool) -> None:
    """Every third entry of the sections that are lists, in other files and with other ids."""
    for section, file in FILES.items():
        spoiled_id, spoil = SPOILERS[section]
        cases = []
        for i, entry in enumerate(pick(own.entries[section], 3, spoiled_id, "two_rounds_image", "raises", "err_")):
            case = json.loads(json.dumps(entry.case))
            is_spoiled = corrupt and case["id"] == spoiled_id
            case["id"] = name = f"case{i}"
            if "tokenizer" in case:
                case["tokenizer"] = TOKENIZERS[case["tokenizer"]].rsplit("/")[-1]
            if section == "tiling/images":
                case["pattern"] = f"p-{case['pattern']}"
            elif section == "tiling/convllava_images":
                case["formula"] = next(e.case["formula"] for e in own.entries["tiling/images"] if e.id == entry.id)
                del case["pattern"]
            if is_spoiled:
                spoil(case)
            cases.append(case)
            written.add(section, prefix_of(root, root / file) + name, is_spoiled)
        write_json(root / file, {entry.key: cases})


def write_mappings(root: Path, own: Fixtures, written: Written, corrupt: bool) -> None:
    """Sections that are mappings: candidate grids, templates, raw strings, stages, scorers."""
    for entry in own.entries["tiling/candidate_order"][1::2]:
        spoiled = corrupt and entry.case["id"] == "2,6"
        grids = {entry.case["id"]: entry.value[:: -1 if spoiled else 1]}
        write_json(root / f"grids/{entry.case['id']}.json", {entry.key: grids})
        written.add(entry.section, f"grids/{entry.case['id']}", spoiled)
    for old, new in TOKENIZERS.items():
        shutil.copytree(DATA / "tokenizers" / old, root / new)
    strings = {e.case["id"]: json.loads(json.dumps(e.value[2:9])) for e in own.entries["templates/raw_tokenization"]}
    if corrupt:
        strings["llama"][3]["input_ids"].append(4)
    names = {old: new.rsplit("/")[-1] for old, new in TOKENIZERS.items()}
    write_json(root / "lang/strings.json", {"raw_tokenization": {names[old]: strings[old] for old in strings}})
    for old, new in names.items():
        written.add("templates/raw_tokenization", f"lang/{new}", corrupt and old == "llama")
    templates = {e.case["id"]: {**e.value} for e in own.entries["templates/templates"]}
    if corrupt:
        templates["llava_v1"]["system_message"] += "!"
    write_json(root / "lang/texts.json", {"templates": templates})
    for name in templates:
        written.add("templates/templates", f"lang/{name}", corrupt and name == "llava_v1")
    scorers = {e.key: json.loads(json.dumps(e.value[1:20:3])) for e in own.entries["scorers"][::4]}
    if corrupt:
        scorers["anls"][1]["expected"] = 0.123
    for i, (name, cases) in enumerate(scorers.items()):
        write_json(root / f"scores/{i % 3}.json", {name: cases})
        written.add("scorers", f"scores/{name}", corrupt and name == "anls")


PICTURES: dict[str, tuple[str, Callable[[Array, Array], tuple[Array, ...]]]] = {
    "plaid": (
        "a=x%17; b0=(y//3)^2; r=(a*11+b0)%256, g=max(x,y)%200, b=abs(x-y)%256",
        lambda x, y: (((x % 17) * 11 + (y // 3) ** 2) % 256, np.maximum(x, y) % 200, abs(x - y) % 256),
    ),
    "steps": (
        "r=255 if x>w//2 else 10\ng=(x+2*y)//4%256\nb=(x^y)%256",
        lambda x, y: (np.where(x > (x.max() + 1) // 2, 255, 10), (x + 2 * y) // 4 % 256, (x ^ y) % 256),
    ),
}
"""New formulas, and the same in numpy."""


def write_pictures(root: Path, written: Written) -> None:
    """Two pictures of new formulas; what is recorded is computed from numpy's picture, not from the text."""
    cases = []
    for i, (name, (formula, channels)) in enumerate(PICTURES.items()):
        width, height, size = 121 - 20 * i, 64 + 30 * i, 28
        y, x = np.mgrid[:height, :width].astype(np.int64)
        image = Image.fromarray(np.stack(channels(x, y), -1).astype(np.uint8))
        tiles = cut_tiles(image, plan_tiles(width, height, 1, 8, size, True))
        rule = ImageRule(kind="tiles", size=size, max_tiles=8, thumbnail=True, mean=IMAGENET[0], std=IMAGENET[1])
        pixels = rule.normalize(rule.apply(image))
        variant = {
            "shape": list(pixels.shape),
            "mean_per_channel": pixels.mean((0, 2, 3), dtype=np.float64).tolist(),
            "abs_sum": float(np.abs(pixels).sum(dtype=np.float64)),
            "first_pixel": pixels[0, :, 0, 0].tolist(),
        }
        cases.append(
            {
                "id": name, "pattern": name, "formula": formula, "width": width, "height": height, "image_size": size,
                "min_num": 1, "max_num": 8, "use_thumbnail": True, "num_tiles": len(tiles),
                "rgb_sha256": hashlib.sha256(image.tobytes()).hexdigest(),
                "tile_uint8_sha256": [hashlib.sha256(tile.tobytes()).hexdigest() for tile in tiles],
                "variants": {"tiles_imagenet": variant},
            }
        )  # fmt: skip
        written.add("tiling/images", f"new/{name}")
    write_json(root / "new/pictures.json", {"anything": cases})


MODELS = {
    "internvl2-v2pe-tiny": {
        "c1_multi_image_plain": "", "c4_quirk_fewer": "", "e_quirk_stale": "out.logits_fresh", "f6_quirk": "",
        "f2_greedy": "out.tokens", "g2_loss_weighted": "out.loss", "h2_select": "out.features",
    },
    "internvl3-tiny-hf": {"b_v2pe_fix": "out.logits", "f1_greedy": "out.tokens", "g3_loss": "", "h1_vision": ""},
    "convllava-tiny": {"v_encoder_128x128": "out.stage3", "l_text_only": "out.logits"},
}  # fmt: skip
"""Model -> parts of the ids of the cases to take, each with the tensor to spoil, if any."""


def save_case(folder: Path, name: str, case: Json, tensors: dict[str, torch.Tensor]) -> Json:
    """Write a case whose tensors are all in one file."""
    (folder / "tensors").mkdir(parents=True, exist_ok=True)
    save_file({key: t.clone().contiguous() for key, t in tensors.items()}, folder / f"tensors/{name}.safetensors")
    return {**{k: v for k, v in case.items() if k != "reuse"}, "id": name, "file": f"tensors/{name}.safetensors"}


def write_models(root: Path, own: Fixtures, written: Written, corrupt: bool) -> None:
    """Three checkpoints in other folders, with an index of another name, some beside the checkpoint, some above it."""
    for number, (model, chosen) in enumerate(MODELS.items()):
        checkpoint = root / f"nets/{number}/weights" if number else root / "nets/zero"
        shutil.copytree(
            DATA / model, checkpoint, ignore=shutil.ignore_patterns("cases", "cases.json", "trainable.json")
        )
        folder = checkpoint.parent if number else checkpoint
        cases: list[Json] = []
        for entry in own.entries["models/cases"]:
            part = next((p for p in chosen if p in entry.id), None)
            if entry.path.parent.name != model or part is None:
                continue
            name = f"m{len(cases)}"
            tensors = load_tensors(entry.path.parent, entry.case)
            if spoil := corrupt and chosen[part]:
                tensors[spoil] = tensors[spoil] + torch.tensor(1).to(tensors[spoil].dtype)
            cases.append(save_case(folder, name, entry.case, tensors))
            written.add("models/cases", f"{folder.relative_to(root)}/{name}", bool(spoil))
        if not number:
            cases += selected_layers(root, folder, own, written)
        write_json(folder / "index.json", {"entries": cases})


def selected_layers(root: Path, folder: Path, own: Fixtures, written: Written) -> list[Json]:
    """Vision cases of layers other than the last, with the states of all: computed block by block."""
    source = next(e for e in own.entries["models/cases"] if e.id.endswith("h1_vision_and_projector"))
    model = load_model(folder)
    encoder, projector = model.encoder, model.projector
    assert isinstance(encoder, InternVit)
    pixels = load_tensors(source.path.parent, source.case)["in.pixel_values"][:1]
    cases = []
    with torch.no_grad():
        state, height, width = encoder.embeddings(pixels)
        states = [state]
        for layer in encoder.encoder.layers:
            states.append(layer(states[-1]))
        for select in (-2, 1, -1, 2):
            grid = states[select][:, 1:].unflatten(1, (height, width))
            merged = pixel_unshuffle(grid, "v2")
            features = apply(projector, merged.flatten(1, 2))
            tensors = {"in.pixel_values": pixels, "out.features": features, "out.pixel_shuffle_v2": merged}
            tensors |= {f"out.hidden_states.{i}": state for i, state in enumerate(states)}
            tensors |= {"out.last_hidden_state": states[-1], "out.pooler_output": states[-1][:, 0]}
            case = {"kind": "vision", "config_override": {"select_layer": select}}
            name = f"layer{select}"
            cases.append(save_case(folder, name, case, tensors))
            written.add("models/cases", f"{folder.relative_to(root)}/{name}")
    return cases


def copies(name: str, entries: list[Entry]) -> dict[str, Json]:
    return {f"{name}{i}": json.loads(json.dumps(entry.value)) for i, entry in enumerate(entries)}


def write_trainable(root: Path, own: Fixtures, written: Written, corrupt: bool) -> None:
    """Two stages and two optimizer groups under other names, beside their checkpoint."""
    checkpoint = root / "nets/2/weights"
    stages = copies("step", own.entries["trainable/stages"][1:3])
    groups = copies("run", own.entries["trainable/optimizer_groups"][:2])
    if corrupt:
        stages["step0"]["frozen"].append(stages["step0"]["trainable"].pop())
        groups["run1"]["groups"][0]["lr"] *= 2
    write_json(checkpoint / "what_trains.json", {"stages": stages, "optimizer_groups_second": groups})
    for section, names in {"trainable/stages": stages, "trainable/optimizer_groups": groups}.items():
        for name in names:
            written.add(section, f"nets/2/weights/{name}", corrupt and name in ("step0", "run1"))


def write_set(root: Path, *, corrupt: bool = False) -> Written:
    """Write the set below an empty folder."""
    own, written = find_fixtures(DATA), Written()
    write_sections(root, own, written, corrupt)
    write_mappings(root, own, written, corrupt)
    write_pictures(root, written)
    write_models(root, own, written, corrupt)
    write_trainable(root, own, written, corrupt)
    return written
