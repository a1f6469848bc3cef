"""`vlm plan`: what a recipe costs and whether it fits, before anything is loaded."""

from typing import Annotated

import typer

from vlm.cli.show.say import say, say_json

app = typer.Typer()


@app.command()
def plan(
    recipe: Annotated[str | None, typer.Argument(help="Name of a shipped recipe, or a YAML file.")] = None,
    machine: Annotated[
        str | None,
        typer.Option(help="a100-40, a100-80, a800-80, h100, h200, ... or cpu; default: as published; --eval: a100-80."),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines; default: as many as published.")] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of each.")] = 8,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs or processes in all, instead of the two above; with --eval: of a ring."),
    ] = None,
    tokens_per_sample: Annotated[
        float | None, typer.Option(help="Mean length of a sample, for the time; default: max_length, an upper bound.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Do as the published scripts did wherever the recipe differs.")
    ] = False,
    against_published: Annotated[
        bool, typer.Option("--against-published", help="Instead of a recipe: predicted against published hours.")
    ] = False,
    eval_: Annotated[
        str | None,
        typer.Option(
            "--eval", metavar="BENCH", help="Instead of a recipe: whether this benchmark's longest prompt fits."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="With --eval: a model, here or released, or a preset.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="With --eval: lay the model's layers over N GPUs.")] = 1,
    dtype: Annotated[str, typer.Option(help="With --eval: precision of the weights.")] = "bfloat16",
    kv_dtype: Annotated[
        str, typer.Option(help="With --eval: of the keys and values: bfloat16, int8, …; auto: --dtype.")
    ] = "auto",
    tokens: Annotated[
        int | None, typer.Option(min=1, help="With --eval: tokens of the longest prompt. Default: the benchmark's.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=0, help="With --eval: images of the longest prompt. Default: the benchmark's.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key: batch.samples=64.")] = None,
    rows: Annotated[
        bool, typer.Option("--rows", help="Also find the rows with the fewest passes a step that fit the machine.")
    ] = False,
    data: Annotated[
        bool, typer.Option("--data", help="List each set of the data, not only how many there are.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Predict whether a recipe fits, hours and memory; then parameters (exact), FLOPs, transfers, what is missing.

    Exit code 7 and the smallest change that helps where it does not fit; missing weights and data are only listed.

    \b
    vlm plan v2pe-32k --machine h100 --nodes 4 --gpus-per-node 8
    vlm plan --eval long-vqa-64k --model V2PE-32K --machine a100-40 --gpus 4
    vlm plan --eval mm-niah-long-1m --model V2PE-256K --processes 8
    """
    from vlm.cli.commands.plan_eval import EvaluationQuestion, plan_evaluation, refuse_evaluation_options
    from vlm.core.errors import ConfigError

    own = {"model": model, "gpus": gpus, "dtype": dtype, "kv_dtype": kv_dtype, "tokens": tokens, "images": images}
    if eval_ is None:
        alone = {"gpus": 1, "dtype": "bfloat16", "kv_dtype": "auto"}
        refuse_evaluation_options(own, usual=alone, without="without --eval BENCH")
    else:
        others: dict[str, object] = {
            "nodes": nodes,
            "gpus_per_node": gpus_per_node,
            "tokens_per_sample": tokens_per_sample,
        }
        others |= {"published": published, "against_published": against_published, "set": set_, "data": data}
        others["rows"] = rows
        usual: dict[str, object] = {"gpus_per_node": 8, "published": False, "against_published": False, "data": False}
        usual["rows"] = False
        refuse_evaluation_options(others, usual=usual, without="with --eval")
        if recipe is not None:
            raise ConfigError(f"the recipe {recipe} with --eval {eval_}", expected="one of them")
        asked = EvaluationQuestion(eval_, model, machine, gpus, processes or 1, dtype, kv_dtype, tokens, images)
        plan_evaluation(asked, as_json=as_json)
        return

    if against_published:
        if recipe is not None or published:
            raise ConfigError(
                "--against-published with a recipe", fix="`vlm plan --against-published` compares them all"
            )
        from vlm.cli.show.estimate import show_published
        from vlm.train.plan.published import published_points

        points = published_points()
        say_json(points) if as_json else show_published(points)
        return
    if recipe is None:
        raise ConfigError("no recipe", expected="its name, or --against-published", fix="`vlm list recipes` names them")
    from vlm.train.plan.fit import misfit
    from vlm.train.plan.run_plan import RunPlan
    from vlm.train.recipe.recipe import load_recipe

    found = RunPlan.resolve(
        load_recipe(recipe, overrides=tuple(set_ or ()), published=published),
        processes,
        machine,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        tokens_per_sample=tokens_per_sample,
    )
    if as_json:
        more = {"estimate": found.estimate, "expected": found.expected, "bound": found.bound}
        say_json({**found.as_dict(), **{key: value and value.as_dict() for key, value in more.items()}})
    else:
        from vlm.cli.show.estimate import answer, show_estimate
        from vlm.cli.show.plan import show_plan
        from vlm.cli.show.screen import Screen

        say(f"{found.recipe.name} {answer(found)}", bold=True)
        show_plan(found, Screen(), data=data)
        show_estimate(found)
        if rows:
            from vlm.cli.show.estimate import rows_words

            say(rows_words(found))
    if error := misfit(found.recipe.name, found.estimate):
        raise error
