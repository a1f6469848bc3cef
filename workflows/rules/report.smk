# One page from everything above.


rule report:
    input:
        stages=expand(f"{RUN}/train/{{recipe}}/model/config.json", recipe=STAGES),
        results=[path for model in config["evaluate"] for path in evaluations(model)],
    output:
        f"{RUN}/report/index.html",
        f"{RUN}/report/report.json",
    log:
        f"{RUN}/logs/report.log",
    benchmark:
        f"{RUN}/benchmarks/report.tsv"
    params:
        run=RUN,
    shell:
        "vlm report {params.run} -o {output[0]} > {log} 2>&1"
