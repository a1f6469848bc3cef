# One job for each model, benchmark and variant.

FLAGS = {"default": "--stride none", "shuffled": "--stride none --shuffle-images"}


def data_of(wildcards):
    """What a benchmark needs: its miniature, or its own data."""
    bench = wildcards.bench
    if bench in config["miniatures"]:
        return f"dataset/mini/{bench}/mini.json"
    return config["benchmark_data"][bench]


rule evaluate:
    input:
        model=lambda w: f"{RUN}/train/{config['evaluate'][w.model]['recipe']}/model/config.json",
        data=data_of,
    output:
        f"{RUN}/eval/{{model}}/{{bench}}/{{variant}}/summary.json",
    log:
        f"{RUN}/logs/evaluate/{{model}}-{{bench}}-{{variant}}.log",
    benchmark:
        f"{RUN}/benchmarks/evaluate/{{model}}-{{bench}}-{{variant}}.tsv"
    params:
        checkpoint=lambda w: f"{RUN}/train/{config['evaluate'][w.model]['recipe']}/model",
        out=f"{RUN}/eval",
        flags=lambda w: FLAGS.get(w.variant)
        or f"--stride {w.variant.removeprefix('stride')}",
        more=lambda w: config["evaluate"][w.model].get("options", {}).get(w.bench, ""),
        data=lambda w: (
            f"--data dataset/mini/{w.bench}" if w.bench in config["miniatures"] else ""
        ),
    shell:
        "vlm eval {wildcards.bench} --model {params.checkpoint} --name {wildcards.model} --out {params.out}"
        " {params.flags} {params.data} {params.more} > {log} 2>&1"
