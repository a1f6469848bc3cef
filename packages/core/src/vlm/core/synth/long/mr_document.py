"""One Long-MR document: its exact length, its record in MM-NIAH's schema, and the origin of its parts."""

import json
from itertools import accumulate
from typing import Any

from vlm.core.synth.haystack import SHORTLY
from vlm.core.synth.long.needles import Hidden
from vlm.core.synth.long.pictures import Picture
from vlm.core.synth.long.record_cost import Measured, Ruler
from vlm.core.synth.long.units import Unit

LETTER = "\nAnswer with the option's letter from the given choices directly."
"""What the MM-NIAH prompt appends to a question with options (the published evaluators)."""


class MrDocument:
    """An arranged document with its exact length."""

    def __init__(self, ruler: Ruler, hidden: Hidden, units: list[Unit], asked: list[Picture]):
        self.hidden, self.units, self.asked = hidden, units, asked
        self.shown: list[Picture] = [unit.image for unit in units if unit.image]
        self.context = "".join("<image>\n" if unit.image else unit.text for unit in units).rstrip() + "\n"
        self.answer = hidden.answer
        if self.answer is None:
            self.answer = [unit.part.get("count", 0) for unit in units if unit.image]
        choices = hidden.choice_pictures or []
        self.pictures = [*self.shown, *asked, *choices]
        self.sizes = [picture.size for picture in self.pictures]
        self.texts = [unit.part["needle"] for unit in units if "needle" in unit.part and not unit.image]
        question, reply = prompt(self._record(0, {}))
        self._ruler, self._asked = ruler, (self.context + question, self.sizes, reply)
        self.measured: Measured = ruler.measure(*self._asked)

    def _record(self, i: int, meta: dict[str, Any]) -> dict[str, Any]:
        options = {"choices": self.hidden.choices, "choices_image_path": None}
        if self.hidden.choice_pictures:
            options["choices_image_path"] = [picture.name for picture in self.hidden.choice_pictures]
        return {
            "id": i,
            "images_list": [picture.name for picture in [*self.shown, *self.asked]],
            "context": self.context,
            "question": self.hidden.question,
            "answer": self.answer,
            "meta": {**meta, **options},
        }

    def record(self, i: int, budget: int) -> dict[str, Any]:
        """Return the published record; `budget`, `needle_tokens` and `needle_boxes` in `meta` are ours."""
        exact = self._ruler.measure(*self._asked, texts=self.texts)
        ends = list(accumulate(unit.cost for unit in self.units))
        depths, needles, tokens, boxes = [], [], [], {}
        texts, images = iter(exact.texts), iter(exact.images)
        for end, unit in zip(ends, self.units, strict=True):
            span = next(images) if unit.image else None
            if "needle" in unit.part:
                depths.append(round((end - unit.cost) / ends[-1], 4))
                needles.append(unit.part["needle"])
                tokens.append(list(span or next(texts)))
                if unit.image:
                    boxes[unit.image.name] = [list(box) for box in unit.image.boxes]
        meta = {
            "placed_depth": depths,
            "context_length": exact.total,
            "context_length_text": exact.total - exact.image_tokens,
            "context_length_image": exact.image_tokens,
            "num_images": len(self.shown) + len(self.asked),
            "needles": needles,
            "budget": budget,
            "needle_tokens": tokens,
            "needle_boxes": boxes,
        }
        return self._record(i, meta)

    def parts(self) -> list[dict[str, Any]]:
        """Return the origin of each part, in document order.

        A part is a run of text of one source, a picture or a needle; the pictures of the question follow.
        """
        parts: list[dict[str, Any]] = []
        at, spans = 0, iter(self.measured.images)
        for unit in self.units:
            length = len("<image>\n") if unit.image else len(unit.text)
            part: dict[str, Any] = {"kind": "needle" if "needle" in unit.part else "image" if unit.image else "text"}
            if unit.image:
                part |= _about(unit.image) | {"tokens": list(next(spans))}
            elif "source" in unit.part:
                part |= {"source": unit.part["source"].sha256, "paragraph": unit.part["paragraph"]}
            part["characters"] = [at, at + length]
            before = parts[-1] if parts else {}
            if part["kind"] == "text" and before.get("source") == part["source"] and before["characters"][1] == at:
                before["characters"][1] = at + length
            else:
                parts.append(part)
            at += length
        asked = [*((p, "question") for p in self.asked), *((p, "option") for p in self.hidden.choice_pictures or [])]
        return parts + [{"kind": kind, **_about(p), "tokens": list(next(spans))} for p, kind in asked]


def _about(picture: Picture) -> dict[str, Any]:
    return {"file": picture.name, "sources": [source.sha256 for source in picture.sources], **picture.part}


def prompt(record: dict[str, Any]) -> tuple[str, str]:
    """Return (question, answer) of an MM-NIAH record, worded as the published evaluators ask and expect them."""
    meta, question = record["meta"], record["question"]
    options = meta["choices"] or ["<image>"] * len(meta["choices_image_path"] or [])
    if options:
        question += "".join(f"\n{chr(65 + i)}. {option}" for i, option in enumerate(options)) + LETTER
        return question, chr(65 + record["answer"])
    if isinstance(record["answer"], list):
        return question, json.dumps(record["answer"])
    return question + SHORTLY, record["answer"]


def conversation(record: dict[str, Any], record_id: str) -> dict[str, Any]:
    """Return an MM-NIAH record as a training record, worded as the benchmark asks."""
    question, answer = prompt(record)
    images = record["images_list"] + (record["meta"]["choices_image_path"] or [])
    turns = [{"from": "human", "value": record["context"] + question}, {"from": "gpt", "value": answer}]
    return {"id": record_id, "image": images, "conversations": turns, "meta": record["meta"]}
