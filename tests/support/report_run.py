"""A small run folder with real images: two models, three benchmarks, strides, a blind control, training curves."""

import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

DOT = """digraph snakemake_dag {
    graph[bgcolor=white, margin=0];
    node[shape=box, style=rounded];
    0[label = "all", color = "0.3 0.6 0.85", style="rounded"];
    1[label = "report", color = "0.1 0.6 0.85", style="rounded"];
    2[label = "train", color = "0.2 0.6 0.85", style="rounded"];
    3[label = "evaluate", color = "0.4 0.6 0.85", style="rounded"];
    4[label = "organize", color = "0.5 0.6 0.85", style="rounded"];
    1 -> 0
    2 -> 1
    3 -> 1
    2 -> 3
    2 -> 2
    4 -> 2
    4 -> 3
}
"""

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
        **extra,
    }


def evaluation(
    folder: Path,
    rows: list[dict],
    title: str,
    model: str,
    *,
    stride=None,
    shuffle=False,
    published=(),
    metric="accuracy",
    template="internlm2-chat",
    **data,
):
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    scored = [r for r in rows if r["score"] is not None]
    mean = 100 * sum(r["score"] for r in scored) / max(1, len(scored))
    strict = 100 * sum(r["strict_score"] for r in scored) / max(1, len(scored))
    half = 98 * math.sqrt(mean / 100 * (1 - mean / 100) / max(1, len(scored))) * 2
    names = {
        "name": metric,
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
        "metrics": [{**names, "value": mean}],
        "strict_metrics": [{**names, "value": strict}],
        "published": list(published),
        "outcomes": {k: sum(r["outcome"] == k for r in rows) for k in sorted({r["outcome"] for r in rows})},
        "data": {"items": len(rows), "available": len(rows), "limit": None, "mini": True, **data},
        "provenance": {
            "weights": "9f2c" * 16,
            "scorers": "17ab" * 16,
            "decode": {
                "stride": stride,
                "dtype": "float32",
                "template": template,
                "image_rule": {"kind": "tiles", "size": 448, "max_tiles": 6},
                "beams": 1,
            },
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
    for model, skill, template in (("v2pe-tiny", 0.8, "internlm2-chat"), ("convllava-tiny", 0.55, "llava_v1")):
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
                        "DocVQA",
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
            about = {"shuffle": shuffle, "metric": "ANLS", "template": template}
            folder = run / "eval" / model / "DocVQA" / ("default-shuffled" if shuffle else "default")
            evaluation(folder, rows, "DocVQA (validation)", model, **about)
    for stride in (1, 16, 64, 256):
        rows = []
        for i, length in enumerate([600, 1500, 3000, 6000, 9000, 14000, 20000, 28000, 36000, 44000, 70000] * 12):
            depth = [rng.random()]
            chance = 0.97 - (length / 80000) * (stride / 256) ** 0.4
            good = rng.random() < chance
            images = [files[(i + k) % 24][0] for k in range(3 + i % 9)]
            prompt = "Context. <image> " * len(images) + "A long page of text. " * 40 + "What is in the needle?"
            meta = {"context_length": length, "placed_depth": depth}
            answer, last = "B" if good else "A", length * (0.4 + 0.6 * stride / 256)
            about = {"meta": meta, "group": "retrieval-image", "tokens": length, "max_position": last}
            rows.append(row("MM-NIAH", f"niah-{i}", images, prompt, 1, answer, float(good), **about))
        folder = run / "eval" / "v2pe-tiny" / "MM-NIAH" / f"stride{stride}"
        evaluation(folder, rows, "MM-NIAH (test)", "v2pe-tiny", stride=stride, metric="image")
    text = '</script><b>not markup</b> & "quotes"'
    rows = [
        row(
            "POPE",
            f"pope/{i}",
            [files[i][0]],
            f"<image>\n{text} Is there a disc?",
            "yes",
            "yes" if i % 3 else "No",
            float(bool(i % 3)),
        )
        for i in range(12)
    ]
    evaluation(run / "eval" / "v2pe-tiny" / "POPE" / "default", rows, "POPE", "v2pe-tiny", metric="F1", mini=False)
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
                    "seconds": 4.4,
                    "rss_gb": 1.2,
                }
            )
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        lost = [
            {"step": n, "id": f"a:{n}", "what": "dropped", "reason": f"/data/{n}.jpg: no such file"} for n in (3, 9)
        ]
        (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lost))
        ledger = {"in": 9600, "used": 9598, "dropped": 2, "truncated": 0, "replaced": 0}
        (folder / "summary.json").write_text(json.dumps({"recipe": stage, "ledger": ledger}))
    for name, line in (
        ("train/1-projector", "61.5 1034.6 70.1"),
        ("train/2-instruction", "130.0 1200.9 NA"),
        ("report", "2.1 88.0 1.9"),
    ):
        path = run / "benchmarks" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("s\tmax_rss\tcpu_time\n" + line.replace(" ", "\t") + "\n")
    (run / "rulegraph.dot").write_text(DOT)
    return run
