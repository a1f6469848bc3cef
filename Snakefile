# The whole pipeline: weights -> data -> staged training -> evaluation -> report. Each rule is one `vlm` command.
#
#   snakemake --profile profiles/local            the quickstart on this machine
#   snakemake --profile profiles/local -n         what would run
from snakemake.utils import min_version, validate

min_version("9.0")

if not config:  # --configfile replaces the quickstart; Snakemake would merge the two

    configfile: "workflows/config/quickstart.yaml"


validate(config, "workflows/config/schema.yaml")


include: "workflows/rules/common.smk"
include: "workflows/rules/download.smk"
include: "workflows/rules/organize.smk"
include: "workflows/rules/train.smk"
include: "workflows/rules/evaluate.smk"
include: "workflows/rules/report.smk"


rule all:
    default_target: True
    input:
        f"{RUN}/report/index.html",
    localrule: True
