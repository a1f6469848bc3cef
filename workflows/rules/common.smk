# Names that several rules share. Nothing is computed here.

RUN = config["run"]
STAGES = config["stages"]
START = config["start"]


wildcard_constraints:
    kind="pretrained|dataset",
    name="[A-Za-z0-9_.-]+",
    recipe="|".join(STAGES),
    bench="[A-Za-z0-9_-]+",
    variant="default|shuffled|stride[0-9.]+",


def evaluations(model):
    """The result files of one model: benchmark x variant."""
    return [
        f"{RUN}/eval/{model}/{bench}/{variant}/summary.json"
        for bench, variants in config["evaluate"][model]["benchmarks"].items()
        for variant in variants
    ]
