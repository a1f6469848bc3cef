# Assemble start checkpoints, then train the stages; a stage that starts from another stage's model waits for it.


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
        name=one_of(START),
    params:
        preset=lambda w: START[w.name]["preset"],
        options=lambda w: " ".join(
            f"--{k} {v}" for k, v in START[w.name]["parts"].items()
        ),
    shell:
        "vlm weights make {params.preset} --out pretrained/{wildcards.name} {params.options} > {log} 2>&1"


# The folder of checkpoints is no output: Snakemake deletes the outputs of a failed job, and a stage that was stopped
# (time limit, crash) resumes from its last checkpoint when its command is rerun.
rule train_stage:
    input:
        start=lambda w: marker_of(STAGES[w.recipe]["start"].format(run=RUN)),
        data=lambda w: training_data(w.recipe),
    output:
        model=f"{RUN}/train/{{recipe}}/model/config.json",
    log:
        f"{RUN}/logs/train/{{recipe}}.log",
    benchmark:
        f"{RUN}/benchmarks/train/{{recipe}}.tsv"
    priority: 10
    threads: config["train_threads"]
    resources:
        **many_processes(SITE, lambda w: STAGES[w.recipe]),
    params:
        launch=lambda w, resources: launch(resources),
        recipe=lambda w: STAGES[w.recipe].get("file", w.recipe),
        run=lambda w: RUN,
        options=lambda w: train_options(STAGES[w.recipe], RUN),
    shell:
        "{params.launch}vlm train --recipe {params.recipe} --run {params.run} {params.options}> {log} 2>&1"
