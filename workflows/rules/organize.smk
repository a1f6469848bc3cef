# From downloads to training sets, haystacks, miniatures and the tokenizer.

SETS = expand("dataset/{name}/train.jsonl", name=config["organize"])
TOKENIZER = config.get("tokenizer", {})


rule organize:
    input:
        lambda w: expand(
            "dataset/{source}/.vlm-manifest.json", source=config["organize"][w.name]
        ),
    output:
        "dataset/{name}/train.jsonl",
    log:
        f"{RUN}/logs/organize/{{name}}.log",
    benchmark:
        f"{RUN}/benchmarks/organize/{{name}}.tsv"
    wildcard_constraints:
        name=one_of(config["organize"]),
    params:
        turns=config["questions_per_record"],
    shell:
        "vlm data organize {wildcards.name} --questions-per-record {params.turns} > {log} 2>&1"


# Published sets: unpack, link and convert them into their folders, as the catalogue says.
rule organize_published:
    input:
        lambda w: needs(w.entry),
    output:
        manifest="{kind}/{folder}/.vlm-organised-{entry}.json",
    log:
        f"{RUN}/logs/organize/{{kind}}-{{folder}}-{{entry}}.log",
    benchmark:
        f"{RUN}/benchmarks/organize/{{kind}}-{{folder}}-{{entry}}.tsv"
    shell:
        "vlm data organize {wildcards.entry} > {log} 2>&1"


rule tokenizer:
    input:
        TOKENIZER.get("needs", SETS),
    output:
        "pretrained/{name}/tokenizer.json",
    log:
        f"{RUN}/logs/organize/{{name}}.log",
    benchmark:
        f"{RUN}/benchmarks/organize/{{name}}.tsv"
    wildcard_constraints:
        name=one_of([TOKENIZER["name"]] if TOKENIZER else []),
    params:
        files=TOKENIZER.get("files", SETS),
        size=TOKENIZER.get("vocab_size"),
        template=(
            f"--template {TOKENIZER['template']} " if "template" in TOKENIZER else ""
        ),
    shell:
        "vlm data tokenizer {params.files} --out pretrained/{wildcards.name} --vocab-size {params.size}"
        " {params.template}> {log} 2>&1"


rule haystack:
    input:
        sets=expand(
            "dataset/{name}/train.jsonl", name=["easy-vqa", "photographs", "digits"]
        ),
        tokenizer=f"pretrained/{config.get('haystack_tokenizer')}/tokenizer.json",
    output:
        "dataset/{name}/manifest-{split}.json",
    log:
        f"{RUN}/logs/organize/{{name}}-{{split}}.log",
    benchmark:
        f"{RUN}/benchmarks/organize/{{name}}-{{split}}.tsv"
    wildcard_constraints:
        name=one_of(config["haystacks"]),
        split="train|test",
    params:
        options=lambda w: " ".join(
            f"--{k.replace('_', '-')} {v}"
            for k, v in config["haystacks"][w.name].items()
        ),
    shell:
        "vlm data build haystack --out {wildcards.name} --split {wildcards.split} --tokenizer {input.tokenizer}"
        " {params.options} > {log} 2>&1"


rule miniature:
    output:
        "dataset/mini/{bench}/mini.json",
    log:
        f"{RUN}/logs/organize/mini-{{bench}}.log",
    benchmark:
        f"{RUN}/benchmarks/organize/mini-{{bench}}.tsv"
    params:
        n=lambda w: config["miniatures"][w.bench],
    shell:
        "vlm data mini {wildcards.bench} --out dataset/mini/{wildcards.bench} --n {params.n} > {log} 2>&1"
