"""A small run folder with real images: two models, three benchmarks, strides, a blind control, training curves."""

import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": "#c8443c", "green": "#4c9a5a", "blue": "#3f6fb5", "gold": "#dcae32"}


def draw(path: Path, colour: str, text: str) -> None:
    image = Image.new("RGB", (480, 340), "#f2efe8")
    pen = ImageDraw.Draw(image)
    pen.ellipse((120, 50, 360, 290), fill=COLOURS[colour])
    pen.text((16, 12), text, fill="#333", font_size=26)
    image.save(path, "JPEG")


def row(benchmark: str, id_: str, images: list[str], prompt: str, gold, answer, score, **extra) -> dict:
    kind = extra.pop("outcome", "ok")
    answered = kind in ("ok", "truncated")
    return {
        "benchmark": benchmark,
        "id": id_,
        "group": extra.pop("group", ""),
        "outcome": kind,
        "prompt": prompt,
        "images": images,
        "completion": answer if answered else None,
        "extracted": answer if answered else "",
        "score": score if answered else None,
        "strict_score": extra.pop("strict", score) if answered else None,
        "why": f"{answer!r} against {gold!r}" if answered else "out of memory when run alone",
        "gold": gold,
        "meta": extra.pop("meta", {}),
        "key": "k" + id_,
    }


def evaluation(
    folder: Path, rows: list[dict], title: str, model: str, *, stride=None, shuffle=False, published=(), **data
):
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    scored = [r for r in rows if r["score"] is not None]
    mean = 100 * sum(r["score"] for r in scored) / max(1, len(scored))
    strict = 100 * sum(r["strict_score"] for r in scored) / max(1, len(scored))
    half = 98 * math.sqrt(mean / 100 * (1 - mean / 100) / max(1, len(scored))) * 2
    metric = {
        "name": "accuracy",
        "low": max(0, mean - half),
        "high": min(100, mean + half),
        "scored": len(scored),
        "total": len(rows),
    }
    summary = {
        "benchmark": rows[0]["benchmark"],
        "title": title,
        "model": model,
        "variant": {"stride": stride, "positions": "exact", "tiles": None, "shuffle_images": shuffle},
        "metrics": [{**metric, "value": mean}],
        "strict_metrics": [{**metric, "value": strict}],
        "published": list(published),
        "outcomes": {k: sum(r["outcome"] == k for r in rows) for k in sorted({r["outcome"] for r in rows})},
        "data": {"items": len(rows), "available": len(rows), "limit": None, "mini": True, **data},
        "provenance": {
            "weights": "9f2c" * 16,
            "scorers": "17ab" * 16,
            "decode": {"stride": stride, "dtype": "float32"},
        },
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    run = {
        "command": "vlm eval --mini",
        "git_commit": "0b8a8ca",
        "python": "3.11.2",
        "platform": "Linux",
        "versions": {"torch": "2.14.1"},
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "timing.json").write_text(
        json.dumps({"runs": [{"ended": "", "seconds": 12.5, "computed": len(rows), "reused": 0}]})
    )


def make_run(root: Path) -> Path:
    """Write `root`/demo and return it."""
    rng = random.Random(7)
    media = root / "media"
    media.mkdir(parents=True)
    files = {}
    for i in range(24):
        colour = list(COLOURS)[i % 4]
        files[i] = (str(media / f"{i:02}.jpg"), colour)
        draw(media / f"{i:02}.jpg", colour, f"page {i}")
    run = root / "demo"
    v2pe = [{"system": "InternVL2-2B", "metric": "accuracy", "value": 86.9, "source": "V2PE, table 4"}]
    v2pe += [{"system": "V2PE-32K", "metric": "accuracy", "value": 83.9, "source": "V2PE, released"}]
    v2pe += [{"system": "ConvLLaVA-1536", "metric": "accuracy", "value": 65.0, "source": "ConvLLaVA, table 5"}]
    for model, skill in (("v2pe-tiny", 0.8), ("convllava-tiny", 0.55)):
        for shuffle in (False, True):
            rows = []
            for i in range(120):
                path, colour = files[i % 24]
                good = rng.random() < (0.25 if shuffle else skill)
                answer = colour if good else rng.choice([c for c in COLOURS if c != colour])
                prompt = f"<image>\nWhich colour has the disc on page {i % 24}? Answer in a single word."
                kind = {3: "oom", 17: "error", 40: "truncated"}.get(i, "ok")
                strict = 0.0 if good and i % 19 == 0 else float(good)
                rows.append(
                    row(
                        "docvqa-val",
                        f"doc-{i:03}",
                        [path],
                        prompt,
                        [colour],
                        answer,
                        float(good),
                        outcome=kind,
                        strict=strict,
                    )
                )
            name = "default-shuffled" if shuffle else "default"
            evaluation(
                run / "eval" / model / "docvqa-val" / name, rows, "DocVQA val", model, shuffle=shuffle, published=v2pe
            )
    niah = [{"system": "InternVL2-2B", "metric": "accuracy", "value": 23.0, "source": "V2PE, table 5"}]
    niah += [{"system": "V2PE-32K", "metric": "accuracy", "value": 78.1, "source": "V2PE, released"}]
    for stride in (1, 16, 64, 256):
        rows = []
        for i, length in enumerate([600, 1500, 3000, 6000, 9000, 14000, 20000, 28000, 36000, 44000, 70000] * 12):
            depth = [rng.random()]
            chance = 0.97 - (length / 80000) * (stride / 256) ** 0.4
            good = rng.random() < chance
            images = [files[(i + k) % 24][0] for k in range(3 + i % 9)]
            prompt = "Context. <image> " * len(images) + "A long page of text. " * 40 + "What is in the needle?"
            meta = {"context_length": length, "placed_depth": depth}
            rows.append(
                row(
                    "mm-niah-retrieval-image",
                    f"niah-{i}",
                    images,
                    prompt,
                    1,
                    "B" if good else "A",
                    float(good),
                    meta=meta,
                )
            )
        folder = run / "eval" / "v2pe-tiny" / "mm-niah-retrieval-image" / f"stride{stride}"
        evaluation(folder, rows, "MM-NIAH retrieval-image", "v2pe-tiny", stride=stride, published=niah)
    text = '</script><b>not markup</b> & "quotes"'
    rows = [
        row(
            "pope",
            f"pope/{i}",
            [files[i][0]],
            f"<image>\n{text} Is there a disc?",
            "yes",
            "yes" if i % 3 else "No",
            float(bool(i % 3)),
        )
        for i in range(12)
    ]
    evaluation(run / "eval" / "v2pe-tiny" / "pope" / "default", rows, "POPE", "v2pe-tiny", mini=False)
    for stage, start, end in (("1-projector", 5.2, 2.4), ("2-instruction", 2.6, 0.9)):
        folder = run / "train" / stage
        folder.mkdir(parents=True)
        lines = []
        for step in range(1, 601):
            loss = end + (start - end) * math.exp(-step / 120) + rng.gauss(0, 0.05)
            lines.append(
                {
                    "step": step,
                    "loss": loss,
                    "lr": 1e-4,
                    "grad_norm": 1.0,
                    "tokens_per_s": 900 + rng.random(),
                    "useful_tokens": 4000,
                    "padding_share": 0.012,
                }
            )
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run
