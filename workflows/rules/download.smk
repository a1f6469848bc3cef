# Fetch: one job for each catalogue entry. The manifest is written last, so that it stands for a complete download.


rule download:
    output:
        "{kind}/{name}/.vlm-manifest.json",
    log:
        f"{RUN}/logs/download/{{kind}}-{{name}}.log",
    benchmark:
        f"{RUN}/benchmarks/download/{{kind}}-{{name}}.tsv"
    retries: 2
    shell:
        "vlm download {wildcards.name} > {log} 2>&1"
