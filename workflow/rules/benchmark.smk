rule score_labels:
    input:
        [run["atlas"] for run in [*label_runs(), *opinion_runs()]],
        [run["seconds"] for run in opinion_runs()],
    output:
        expand("results/{{atlas}}/benchmark/{table}.csv", table=OF_LABELS),
        fitness=report(
            "results/{atlas}/benchmark/fitness.csv",
            caption="../report/fitness.rst",
            category="Labels",
            labels={"figure": "Does the reference fit?"},
        ),
        timed=report(
            "results/{atlas}/logs/opinions.csv",
            caption="../report/opinions.rst",
            category="Labels",
            labels={"figure": "Second opinions"},
        ),
    log:
        "results/{atlas}/logs/score_labels.log",
    benchmark:
        "results/{atlas}/logs/score_labels.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("score_labels", 2000, 60, mb_per_mb=4),
    params:
        runs=quoted(placed_runs(label_runs())),
        opinions=quoted(placed_runs(opinion_runs())),
        out=subpath(output.fitness, parent=True),
        numerics=NUMERICS["classification"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " score-labels --runs {params.runs} --opinions {params.opinions}"
        " --out {params.out:q} --timed {output.timed:q}"


rule score_embeddings:
    input:
        embeddings=lambda w: [run["path"] for run in runs_of(w)],
        counts=all_counts,
    output:
        "results/{atlas}/benchmark/scib/seed{seed}/{part}.csv",
    log:
        "results/{atlas}/logs/seed{seed}/score_embeddings_{part}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/score_embeddings_{part}.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("score_embeddings", 4000, 360, mb_per_mb=20),
    params:
        runs=lambda w: quoted(placed_runs(runs_of(w))),
        counts=lambda w, input: repeated("counts", input.counts),
        settings=block_flag("benchmark", "n_neighbors", "max_cells", "n_samples"),
        numerics=NUMERICS["scib"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " score-embeddings --runs {params.runs} {params.counts} --out {output:q}"
        " --seed {wildcards.seed} {params.settings}"


rule gather:
    input:
        reference=expand(
            "results/{{atlas}}/seed{seed}/reference/{folder}/history.csv",
            seed=CONFIG.seeds,
            folder=REFERENCE_FOLDERS,
        ),
        mapped=lambda w: all_mapped(),
        scib=scib_parts if SCORED_BY_SCIB else [],
    output:
        history="results/{atlas}/benchmark/history.csv",
        scib="results/{atlas}/benchmark/scib.csv" if SCORED_BY_SCIB else [],
        certificates="results/{atlas}/benchmark/certificates.csv" if CERTIFIED else [],
        page=(
            report(
                "results/{atlas}/benchmark/certificates.html",
                caption="../report/certificates.rst",
                category="Certificates",
                labels={"page": "Surgery certificates"},
            )
            if CERTIFIED
            else []
        ),
    log:
        "results/{atlas}/logs/gather.log",
    benchmark:
        "results/{atlas}/logs/gather.tsv"
    localrule: True
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("gather", 1000, 20),
    params:
        mappings=lambda w: gathered_flags(),
        scib=lambda w, input: repeated("scib", input.scib),
        out=subpath(output.history, parent=True),
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " gather {input.reference:q} {params.mappings} {params.scib} --out {params.out:q}"
