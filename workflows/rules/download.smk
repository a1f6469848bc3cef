# Fetch: one job for each folder. The manifest is written last, so its existence means a complete download.
# Local rules, because compute nodes seldom reach the internet.


localrules:
    download,
    by_hand,


rule download:
    output:
        manifest=ensure("{kind}/{folder}/.vlm-manifest.json", non_empty=True),
    log:
        f"{RUN}/logs/download/{{kind}}-{{folder}}.log",
    benchmark:
        f"{RUN}/benchmarks/download/{{kind}}-{{folder}}.tsv"
    retries: 2  # on the rule: a local rule starts no inner Snakemake that would retry as well
    params:
        entries=lambda w: downloads_of(f"{w.kind}/{w.folder}"),
    shell:
        "vlm download {params.entries} > {log} 2>&1"


# Fails with the steps that a person must take, until they are done.
rule by_hand:
    output:
        placed=touch("{kind}/{folder}/.vlm-by-hand-{entry}"),
    log:
        f"{RUN}/logs/download/{{kind}}-{{folder}}-{{entry}}.log",
    benchmark:
        f"{RUN}/benchmarks/download/{{kind}}-{{folder}}-{{entry}}.tsv"
    shell:
        "vlm download {wildcards.entry} > {log} 2>&1"
