# Targets besides `all` and `report`: one kind of work, or one part with its own report: a system, the released
# models, the trained ones.


localrules:
    weights,
    data,
    train,
    evaluate,
    v2pe,
    internvl_chat_v1_2,
    convllava,
    released,
    trained,


# functions, because each job reads this file again, and only these targets need the whole catalogue
rule weights:
    input:
        lambda w: {
            marker_of(folder)
            for folder in [
                *(stage["start"] for stage in STAGES.values()),
                *(checkpoint_of(model) for model in MODELS),
            ]
            if not folder.startswith(("{run}", RUN))
        },


rule data:
    input:
        lambda w: {path for recipe in STAGES for path in training_data(recipe)}
        | {data_of(bench) for e in MODELS.values() for bench in e["benchmarks"]},


rule train:
    input:
        stages_of(*SYSTEMS),


rule evaluate:
    input:
        evaluations_of(*SYSTEMS),


rule v2pe:
    input:
        f"{RUN}/report/v2pe/index.html",


rule internvl_chat_v1_2:
    input:
        f"{RUN}/report/internvl_chat_v1_2/index.html",


rule convllava:
    input:
        f"{RUN}/report/convllava/index.html",


rule released:
    input:
        f"{RUN}/report/released/index.html",


rule trained:
    input:
        f"{RUN}/report/trained/index.html",
