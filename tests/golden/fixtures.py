"""Golden fixtures, found below a folder by what their files hold.

>>> found = find_fixtures(Path("tests/golden/data"))
>>> [entry.id for entry in found.entries["tiling/images"]]
['image0', 'image1', 'image2', 'image3']

A JSON file is a set of sections; an entry of a section is recognized by its keys. Names of files and folders, nesting
and counts are free. Names that Hugging Face loaders ask for (`config.json`, `tokenizer_config.json`) are fixed.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class FixtureError(Exception):
    """A folder of fixtures that cannot be read: what is missing, and where."""


@dataclass(frozen=True)
class Section:
    """One kind of entry. `key`: pattern of its name in the file; `marks`: keys that recognize an entry (`a|b`: either
    of them); `keys`: all further keys that the runner reads, or that explain the ones it reads."""

    name: str
    key: str
    marks: str
    keys: str = ""

    def holds(self, key: str, entry: object) -> bool:
        """Whether an entry under `key` belongs to this section."""
        if not fnmatch(key, self.key) or not isinstance(entry, dict):
            return False
        return all(any(name in entry for name in mark.split("|")) for mark in self.marks.split())

    def unknown(self, entry: Json) -> list[str]:
        """Keys of an entry that the runner neither reads nor takes for a remark."""
        known = {"id", *self.marks.replace("|", " ").split(), *self.keys.split()}
        return [key for key in entry if key not in known and not is_remark(key)]


SECTIONS = [
    Section(
        "positions/cases",
        "*",
        "version num_image_token layout|samples",
        "stride masked_tail num_tokens dtype last_position positions runs sum_float64 python_random_seed "
        "python_random_seeds drawn_strides raises cu_seqlens data_index_runs container long_context",
    ),
    Section(
        "tiling/cases",
        "*",
        "grid boxes width height",
        "min_num max_num image_size use_thumbnail num_tiles thumbnail resized_to tie_candidates",
    ),
    Section(
        "tiling/images",
        "*",
        "tile_uint8_sha256 variants width height formula|pattern",
        "image_size min_num max_num use_thumbnail rgb_sha256 num_tiles",
    ),
    Section("tiling/convllava_images", "*", "resolution variants width height formula|pattern"),
    Section(
        "packing/cases",
        "*",
        "packs datasets config samples",
        "dataset_weight numpy_global_seed num_context_tokens_per_tile collated raises",
    ),
    Section(
        "packing/micro_batches",
        "*",
        "rows micro_num",
        "position_ids_given_as raises max_item_length input_ids labels cu_seqlens loss_weight position_ids image_flags "
        "statistics",
    ),
    Section("packing/len2weight", "*", "effective_tokens token|sample|square"),
    Section(
        "templates/templates", "*", "system_message roles", "sep sep2 stop_str sep_style version example_prompt_*"
    ),
    Section(
        "templates/training",
        "*",
        "conversations template tokenizer model_max_length",
        "upstream_function num_image_token_list num_image text_only use_packed_ds prompt input_ids labels "
        "attention_mask all_labels_ignored raises quirk upstream_warning has_image supervised_text "
        "conversations_after_preprocess_multimodal",
    ),
    Section(
        "templates/generation",
        "*",
        "question template tokenizer input_ids",
        "history num_patches_list num_image_token prompt eos_token_id rope_pos_id_version rope_pos_id_stride "
        "prompt_length position_ids position_ids_dtype",
    ),
    Section(
        "templates/batches",
        "*",
        "questions template tokenizer input_ids attention_mask",
        "num_patches_list num_image_token eos_token_id prompt prompts position_ids rope_pos_id_version "
        "rope_pos_id_stride",
    ),
    Section("templates/collator", "*", "samples model_max_length input_ids labels", "tokenizer attention_mask"),
    Section(
        "sharding/splits",
        "*",
        "world_size length ulysses|ring|ring_raises",
        "divisible gather_order_restores_identity chunk_of_rank",
    ),
    Section(
        "sharding/padding",
        "*",
        "world_size sample_lengths token_index_per_rank_if_split_per_sample",
        "input_ids labels position_ids loss_weight cu_seqlens out_input_ids out_labels out_position_ids "
        "out_loss_weight out_cu_seqlens cu_seqlens_given_to_ring_attention token_index_per_rank "
        "whole_row_split_equals_per_sample_split",
    ),
    Section("trainable/stages", "*", "flags trainable frozen"),
    Section(
        "trainable/optimizer_groups", "optimizer_groups_*", "groups learning_rate weight_decay",
        "mm_projector_lr vision_tower_lr",
    ),
    Section(
        "models/cases",
        "*",
        "kind file",
        "tensors reuse num_tiles rope_pos_id_version rope_pos_id_stride config_override llm_config_override "
        "select_layer ps_version compare_where quirk raises attention loss grad_norms grad_norm_total "
        "params_without_grad loss_reduction sample_tiles sample_lengths max_new_tokens stop_token_id tokens "
        "drawn_strides python_random_seed seq_len",
    ),
]  # fmt: skip

REMARKS = (
    "description", "*note", "*notes", "computed_by", "function", "upstream", "*maxabs*", "*_noise", "*_margin", "*_std",
    "increment", "increments", "stride_at_*", "crosscheck_*", "quirk_*", "token_ids", "transformers_class_raises",
)  # fmt: skip
"""Keys of remarks: how a value was made, how sure it is. Nothing to compare."""

HF_FILES = {
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "model.safetensors.index.json",
}  # fmt: skip
OTHER_FILES = {".md", ".txt", ".model", ".safetensors", ".bin", ".gitkeep"}


def is_remark(key: str) -> bool:
    """Whether a key only explains its neighbors."""
    return any(fnmatch(key, pattern) for pattern in REMARKS)


@dataclass(frozen=True)
class Entry:
    """One recorded case.

    `case` is the entry as recorded, with an `id`; `name` its key in a section that is a mapping, and `value` what
    stands there; `path` the file, `head` all of its content.
    """

    id: str
    section: str
    key: str
    case: Json
    value: Any
    path: Path
    head: Json


@dataclass
class Fixtures:
    """What a folder holds. `faults`: files, sections and keys that the runner does not know."""

    root: Path
    entries: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)

    def nearest(self, to: Path, folders: list[Path]) -> list[Path]:
        """Folders sorted by how much of their path they share with a file."""
        own = to.relative_to(self.root).parts

        def distance(folder: Path) -> tuple[int, str]:
            other = folder.relative_to(self.root).parts
            shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(own, other, strict=False))))
            return len(own) + len(other) - 2 * shared, str(folder)

        return sorted(folders, key=distance)

    def tokenizer(self, entry: Entry, name: str) -> Path:
        """The tokenizer folder of that name, nearest to an entry's file.

        Raises:
            FixtureError: names the tokenizers that are there.
        """
        files = [p for p in self.root.rglob("tokenizer*") if p.name in {*HF_FILES, "tokenizer.model"}]
        folders = self.nearest(entry.path, list({p.parent for p in files}))
        found = [folder for folder in folders if folder.name == name]
        if not found:
            raise FixtureError(
                f"{entry.path}: tokenizer {name!r} is not below {self.root}; found {sorted(f.name for f in folders)}"
            )
        return found[0]

    def model(self, entry: Entry) -> Path:
        """The checkpoint folder of an entry: the folder of its file, the one that `model_dir` names, or the only one
        below or nearest above.

        Raises:
            FixtureError: no such folder.
        """
        if (entry.path.parent / "config.json").is_file():
            return entry.path.parent
        folders = self.nearest(entry.path, [p.parent for p in self.root.rglob("config.json")])
        named = [f for f in folders if f.name == Path(str(entry.head.get("model_dir", ""))).name]
        below = [f for f in folders if f.is_relative_to(entry.path.parent) and not nested(f, folders)]
        above = [f for f in folders if entry.path.is_relative_to(f)]
        for found in (named, above, below if len(below) == 1 else []):
            if found:
                return found[0]
        raise FixtureError(f"{entry.path}: no checkpoint folder with a config.json belongs to it")

    def tensor_files(self, entry: Entry) -> list[Path]:
        """Safetensors files that belong to no checkpoint and no case of one, nearest to an entry's file first."""
        checkpoints = {p.parent for p in self.root.rglob("config.json")}
        used = {e.path.parent / source["file"] for e in self.entries["models/cases"] for source in sources(e.case)}
        free = [p for p in self.root.rglob("*.safetensors") if p not in used and not checkpoints & set(p.parents)]
        return self.nearest(entry.path, free)


def sources(case: Json) -> list[Json]:
    """A model case and what it takes tensors from; each names a `file`."""
    return [case, *case.get("reuse", {}).values()]


def nested(folder: Path, folders: list[Path]) -> bool:
    """Whether a checkpoint folder lies in another one, as a vision tower does."""
    return any(folder != other and folder.is_relative_to(other) for other in folders)


def items(value: object) -> Iterator[tuple[str | None, Any]]:
    """Entries of a section with their names, None in a list."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from ((None, item) for item in value)


def is_scorer(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(e, dict) and {"inputs", "expected"} <= e.keys() for e in value)


def classify(key: str, name: str | None, value: object) -> str | None:
    """The section of one entry, None if it is of no known kind."""
    if isinstance(value, list):
        if name is not None and key == "candidate_order" and name.replace(",", "").isdigit():
            return "tiling/candidate_order"
        if name is not None and value and all(isinstance(e, dict) and {"text", "input_ids"} <= e.keys() for e in value):
            return "templates/raw_tokenization"
    return next((section.name for section in SECTIONS if section.holds(key, value)), None)


def check_keys(section: str, value: object) -> list[str]:
    """Keys of an entry that nothing reads."""
    if section == "templates/raw_tokenization":
        assert isinstance(value, list)
        keys = {key for string in value for key in string}
        return sorted(key for key in keys - {"text", "input_ids"} if not is_remark(key))
    if not isinstance(value, dict):
        return []
    unknown = next(s for s in SECTIONS if s.name == section).unknown(value)
    return [key for key in unknown if not (section == "templates/templates" and key.startswith("example_prompt"))]


def read_file(found: Fixtures, path: Path) -> None:
    """Add the entries of one JSON file."""
    where = path.relative_to(found.root)
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found.faults.append(f"{where}: no JSON: {error}")
        return
    if not isinstance(head, dict):
        found.faults.append(f"{where}: a {type(head).__name__}, expected a mapping of sections")
        return
    prefix = "" if where.parent == Path() else f"{where.parent}/"

    def add(section: str, key: str, name: str | None, value: Any) -> None:
        case = {**value} if isinstance(value, dict) else {}
        case.setdefault("id", name if name is not None else f"{key}{len(found.entries[section])}")
        found.entries[section].append(Entry(f"{prefix}{case['id']}", section, key, case, value, path, head))
        if strange := check_keys(section, value):
            found.faults.append(f"{where}: {key}: {case['id']}: unknown keys {strange}")

    for key, content in head.items():
        if is_scorer(content):
            found.entries["scorers"].append(Entry(f"{prefix}{key}", "scorers", key, {"id": key}, content, path, head))
            unknown = {key for case in content for key in case} - {"inputs", "expected", "other_upstreams"}
            found.faults += [f"{where}: {key}: unknown keys {sorted(unknown)}"] if unknown else []
        elif isinstance(content, dict) and {"source", "inputs", "cases"} <= content.keys():
            found.entries["notes"].append(Entry(f"{prefix}{key}", "notes", key, {"id": key}, content, path, head))
        elif isinstance(content, dict | list) and not is_remark(key):
            for name, value in items(content):
                if section := classify(key, name, value):
                    add(section, key, name, value)
                else:
                    keys = sorted(value) if isinstance(value, dict) else type(value).__name__
                    label = value.get("id", name) if isinstance(value, dict) else name
                    found.faults.append(f"{where}: {key}: {label}: an entry of no known kind: {keys}")


def find_fixtures(root: Path) -> Fixtures:
    """Read every fixture below a folder.

    Raises:
        FixtureError: the folder does not exist or holds no fixture.
    """
    if not root.is_dir():
        raise FixtureError(f"{root} is no folder")
    found = Fixtures(root)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        if path.suffix == ".json" and path.name not in HF_FILES:
            read_file(found, path)
        elif path.suffix not in OTHER_FILES and path.name not in HF_FILES:
            found.faults.append(f"{path.relative_to(root)}: a file of no known kind")
    if not any(found.entries.values()) and not found.faults:
        raise FixtureError(f"{root} holds no golden fixture")
    return found
