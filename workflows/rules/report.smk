# One report of everything, and one for each system.


rule report:
    input:
        stages=stages_of(*SYSTEMS),
        results=evaluations_of(*SYSTEMS),
    output:
        page=report(f"{RUN}/report/index.html", category="Report"),
        tables=f"{RUN}/report/report.json",
    log:
        f"{RUN}/logs/report.log",
    benchmark:
        f"{RUN}/benchmarks/report.tsv"
    params:
        run=lambda w: RUN,
    shell:
        "vlm report {params.run} -o {output.page} > {log} 2>&1"


rule report_system:
    input:
        stages=lambda w: stages_of(w.system),
        results=lambda w: evaluations_of(w.system),
    output:
        page=report(f"{RUN}/report/{{system}}/index.html", category="Report"),
        tables=f"{RUN}/report/{{system}}/report.json",
    log:
        f"{RUN}/logs/report-{{system}}.log",
    benchmark:
        f"{RUN}/benchmarks/report-{{system}}.tsv"
    wildcard_constraints:
        system="|".join(SYSTEMS),
    params:
        folders=lambda w: " ".join(
            [f"{RUN}/train/{r}" for r, s in STAGES.items() if s["system"] == w.system]
            + [f"{RUN}/eval/{m}" for m, e in MODELS.items() if e["system"] == w.system]
        ),
    shell:
        "vlm report {params.folders} -o {output.page} > {log} 2>&1"
