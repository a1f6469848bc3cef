# Start checkpoints from parts, then the stages; a stage whose start is another stage's model waits for it.


rule start_checkpoint:
    input:
        lambda w: START[w.name]["needs"],
    output:
        "pretrained/{name}/config.json",
    log:
        f"{RUN}/logs/weights/{{name}}.log",
    benchmark:
        f"{RUN}/benchmarks/weights/{{name}}.tsv"
    wildcard_constraints:
        name="|".join(START),
    params:
        preset=lambda w: START[w.name]["preset"],
        options=lambda w: " ".join(
            f"--{k} {v}" for k, v in START[w.name]["parts"].items()
        ),
    shell:
        "vlm weights make {params.preset} --out pretrained/{wildcards.name} {params.options} > {log} 2>&1"


rule train:
    input:
        start=lambda w: STAGES[w.recipe]["start"].format(run=RUN) + "/config.json",
        data=lambda w: STAGES[w.recipe]["data"],
    output:
        f"{RUN}/train/{{recipe}}/model/config.json",
    log:
        f"{RUN}/logs/train/{{recipe}}.log",
    benchmark:
        f"{RUN}/benchmarks/train/{{recipe}}.tsv"
    priority: 10
    threads: config["train_threads"]
    params:
        run=RUN,
    shell:
        "vlm train --recipe {wildcards.recipe} --run {params.run} --quiet > {log} 2>&1"
