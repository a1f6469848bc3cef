# One report of everything, one for each system, one of what was released and one of what is trained here.


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
        system=one_of([*SYSTEMS, *ORIGINS]),
    params:
        folders=lambda w: " ".join(
            f"{RUN}/{kind}/{name}"
            for kind, names in zip(["train", "eval"], part_of(w.system))
            for name in names
        ),
    shell:
        "vlm report {params.folders} -o {output.page} > {log} 2>&1"
