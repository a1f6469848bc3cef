# One job for each model, benchmark and variant. A large benchmark is split into shards; the same command without
# `--shard` gathers and scores their answers. Snakemake decides what is out of date, so that results are replaced.
# A ring of several processes is a job step of so many tasks where the profile has a site, else `vlm eval` starts them.


rule evaluate_shard:
    input:
        model=lambda w: marker_of(checkpoint_of(w.model)),
        data=lambda w: data_of(w.bench),
        table=lambda w: table_of(w.bench).file,
    output:
        # written when the shard is done; the answers are no output, so that they stay after a failure
        done=f"{RUN}/eval/{{model}}/{{bench}}/{{variant}}/shards/{{shard}}-of-{{shards}}/timing.json",
    log:
        f"{RUN}/logs/evaluate/{{model}}-{{bench}}-{{variant}}-{{shard}}-of-{{shards}}.log",
    benchmark:
        f"{RUN}/benchmarks/evaluate/{{model}}-{{bench}}-{{variant}}-{{shard}}-of-{{shards}}.tsv"
    resources:
        **evaluation(SITE, gpus_of, processes_of),
    params:
        checkpoint=lambda w: checkpoint_of(w.model),
        out=lambda w: f"{RUN}/eval",
        flags=asked,
        launch=lambda w, resources: launch(resources),
    shell:
        "{params.launch}vlm eval {wildcards.bench} --model {params.checkpoint} --name {wildcards.model} --out {params.out} --replace"
        " --shard {wildcards.shard}/{wildcards.shards} {params.flags} > {log} 2>&1"


rule evaluate_model:
    input:
        model=lambda w: marker_of(checkpoint_of(w.model)),
        data=lambda w: data_of(w.bench),
        table=lambda w: table_of(w.bench).file,
        shards=shards_of,
    output:
        summary=f"{RUN}/eval/{{model}}/{{bench}}/{{variant}}/summary.json",
    log:
        f"{RUN}/logs/evaluate/{{model}}-{{bench}}-{{variant}}.log",
    benchmark:
        f"{RUN}/benchmarks/evaluate/{{model}}-{{bench}}-{{variant}}.tsv"
    resources:
        **evaluation(SITE, gpus_of, processes_of),
    params:
        checkpoint=lambda w: checkpoint_of(w.model),
        out=lambda w: f"{RUN}/eval",
        flags=asked,
        launch=lambda w, resources: launch(resources),
    shell:
        "{params.launch}vlm eval {wildcards.bench} --model {params.checkpoint} --name {wildcards.model} --out {params.out} --replace"
        " {params.flags} > {log} 2>&1"
