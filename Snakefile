# The whole pipeline: weights -> data -> training in stages -> evaluation -> report. Each rule is one `vlm` command.
#
#   snakemake --profile profiles/local            the quickstart on this machine
#   snakemake --profile slurm all                 the published systems on a cluster (slurm -> profiles/slurm)
#   snakemake --profile slurm -n v2pe             what one system would run
from snakemake.utils import min_version, validate

min_version("9.0")


# the base of `make setup`; used only with `--sdm apptainer`, and then `vlm` must be installed in it
container: "docker://python:3.11-bookworm"


# --configfile replaces the quickstart; a profile may add the site
if "run" not in config:

    configfile: "workflows/config/quickstart.yaml"


validate(config, "workflows/config/schema.yaml")


include: "workflows/rules/common.smk"
include: "workflows/rules/download.smk"
include: "workflows/rules/organize.smk"
include: "workflows/rules/train.smk"
include: "workflows/rules/evaluate.smk"
include: "workflows/rules/report.smk"
include: "workflows/rules/targets.smk"


rule all:
    default_target: True
    input:
        f"{RUN}/report/index.html",
        # also by name, so that a deleted one is made again
        stages_of(*SYSTEMS),
        evaluations_of(*SYSTEMS),
    localrule: True


onstart:
    with plain_errors():
        guards.enter_context(exclusive(RUN))
        write_rule_graph(RUN, workflow.dag.jobs)
        if SITE:
            cancel_strays()
            preflight(workflow.dag.needrun_jobs())


onsuccess:
    write_snakemake_report(RUN, workflow.overwrite_configfiles)
