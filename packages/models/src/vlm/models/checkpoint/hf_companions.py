"""The files beside weights and config.json that transformers' Auto classes, pipelines and servers need for an InternVL.

They are `processor_config.json`, `chat_template.jinja`, `generation_config.json`, and entries of the tokenizer.
"""

import json
from pathlib import Path
from typing import Any

from vlm.core.errors import CheckpointError
from vlm.core.home import read_object, write_atomic, write_json
from vlm.core.sample.chat import Template, get_template
from vlm.core.sample.tokenizer import Tokenizer, load_tokenizer
from vlm.models.checkpoint.agreement import VIDEO
from vlm.models.specs import ModelSpec

CHAT_TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"


def complete_hf_folder(folder: Path, spec: ModelSpec, tokens_per_tile: int, *, keep_template: bool) -> None:
    """Write the companions of a checkpoint in the `hf` layout that holds a tokenizer.

    Args:
        folder: the new folder, with its tokenizer files.
        spec: the model.
        tokens_per_tile: context tokens of a tile.
        keep_template: a chat template that is there stays: it came with a checkpoint of this layout.
    """
    tokenizer, template = load_tokenizer(folder), get_template(spec.template)
    write_json(folder / "tokenizer_config.json", tokenizer_entries(folder, spec))
    write_json(
        folder / "processor_config.json",
        {"processor_class": "InternVLProcessor", "image_seq_length": tokens_per_tile},
    )
    if not template.images_only and not (keep_template and (folder / CHAT_TEMPLATE).exists()):
        write_atomic(folder / CHAT_TEMPLATE, chat_template(template, spec.system, bos=tokenizer.add_bos))
    write_json(folder / GENERATION, generation_settings(folder, template, tokenizer))


def tokenizer_entries(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Return `tokenizer_config.json` with the tokens that mark images and videos, and without code of other people.

    A chat template in it would compete with `chat_template.jinja`.
    """
    path = folder / "tokenizer_config.json"
    config = read_object(path, CheckpointError) if path.exists() else {}
    marks = spec.image_tokens
    entries = {
        "start_image_token": marks.start,
        "end_image_token": marks.end,
        "context_image_token": marks.context,
        "video_token": VIDEO,
    }
    kept = {key: value for key, value in config.items() if key not in ("auto_map", "chat_template")}
    return {**kept, **entries, "extra_special_tokens": entries}


def generation_settings(folder: Path, template: Template, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return `generation_config.json`: an answer ends where `vlm chat` ends it; other settings of the source stay."""
    path = folder / GENERATION
    config = read_object(path, CheckpointError) if path.exists() else {}
    ends = [*(tokenizer.token_id(name) for name in template.stop), tokenizer.eos_id]
    config["eos_token_id"] = list(dict.fromkeys(i for i in ends if i is not None))
    for name, i in (("bos", tokenizer.bos_id), ("pad", tokenizer.pad_id)):
        if i is not None:
            config[f"{name}_token_id"] = i
    return config


def quoted(text: str) -> str:
    """Return a text as a literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)


def chat_template(template: Template, system: str | None, *, bos: bool) -> str:
    r"""Return a prompt format as a chat template of transformers (Jinja).

    An image or a video at the front of a message is followed by a newline, as published; where the text after it
    begins with white space, the newline is not doubled. Media behind text stand as they are. (A caption template, which
    discards the text of the user, is no chat.)

    Args:
        template: the prompt format.
        system: replaces the template's system text.
        bos: begin with the tokenizer's beginning of sequence.

    >>> print(chat_template(get_template("internlm2-chat"), "Be brief.", bos=True))      # doctest: +ELLIPSIS
    {%- macro content(message) -%}...
    """
    text = template.system if system is None else system
    header, end = template.headers, template.ends
    pieces = MEDIA_FIRST if template.images_first else MEDIA_IN_PLACE
    body = "content(message) | trim" if template.strip else "content(message)"
    condition = "true" if template.ends_empty else "text"
    turns = ""
    for word, role in (("if", "user"), ("elif", "assistant")):
        turns += (
            f"{{%- {word} message['role'] == '{role}' -%}}{{{{- {quoted(header[role])} -}}}}{{%- if {condition} -%}}"
        )
        turns += f"{{{{- {quoted(template.lead)} + text + {quoted(end[role] + template.tail)} -}}}}{{%- endif -%}}"
    return (
        f"{pieces}\n"
        + ("{{- bos_token -}}\n" if bos else "")
        + "{%- if messages[0]['role'] == 'system' -%}{%- set system = content(messages[0]) -%}"
        + f"{{%- else -%}}{{%- set system = {quoted(text)} -%}}{{%- endif -%}}\n"
        + f"{{{{- {quoted(header['system'])} + system + {quoted(end['system'] + template.tail)} -}}}}\n"
        + "{%- for message in messages -%}\n"
        + f"{{%- set text = {body} -%}}\n"
        + turns
        + "{%- endif -%}\n{%- endfor -%}\n"
        + f"{{%- if add_generation_prompt -%}}{{{{- {quoted(header['assistant'])} -}}}}{{%- endif -%}}\n"
    )


MEDIA_IN_PLACE = """{%- macro content(message) -%}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- set front = namespace(still=true) -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{%- set front.still = false -%}{{- part['text'] -}}
{%- else -%}
{{- '<video>' if part['type'] == 'video' else '<IMG_CONTEXT>' -}}
{%- if front.still and not loop.last -%}
{%- if loop.nextitem['type'] != 'text' or loop.nextitem['text'][:1].strip() -%}{{- '\\n' -}}{%- endif -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}"""

MEDIA_FIRST = """{%- macro content(message) -%}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- set words = namespace(text='', media=0) -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{%- set words.text = words.text + part['text'] -%}
{%- else -%}
{%- if words.media -%}{{- '\\n' -}}{%- endif -%}
{%- set words.media = words.media + 1 -%}
{{- '<video>' if part['type'] == 'video' else '<IMG_CONTEXT>' -}}
{%- endif -%}
{%- endfor -%}
{%- if words.media -%}
{%- set words.text = words.text | trim -%}
{%- if words.text -%}{{- '\\n' -}}{%- endif -%}
{%- endif -%}
{{- words.text -}}
{%- endif -%}
{%- endmacro -%}"""
