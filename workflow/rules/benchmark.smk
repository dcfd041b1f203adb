rule score_labels:
    input:
        [run["atlas"] for run in [*label_runs(), *opinion_runs()]],
        [run["seconds"] for run in opinion_runs()],
    output:
        fitness=report(
            "results/{atlas}/benchmark/fitness.csv",
            caption="../report/fitness.rst",
            category="Labels",
            labels={"figure": "Does the reference fit?"},
        ),
        tables=expand(
            "results/{{atlas}}/benchmark/{table}.csv",
            table=[
                "classification",
                "classification_per_class",
                "confusion",
                "reliability",
                "risk_coverage",
                "trust",
                "shifts",
                "opinions",
                "knn_sensitivity",
            ],
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
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("score_labels", 2000, 4),
        runtime=minutes("score_labels", 60),
    params:
        runs=shlex.quote(json.dumps(label_runs())),
        opinions=shlex.quote(json.dumps(opinion_runs())),
        out=subpath(output.fitness, parent=True),
        numerics=NUMERICS["classification"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " score-labels --runs {params.runs} --opinions {params.opinions} --out {params.out:q}"
        " --timed {output.timed:q}"


rule score_embeddings:
    input:
        embeddings=lambda w: [run["path"] for run in runs_of(w)],
        counts=lambda w: [
            f"results/{w.atlas}/data/reference.h5ad",
            *(
                f"results/{w.atlas}/data/queries/{batch}.h5ad"
                for batch in query_batches()
            ),
        ],
    output:
        "results/{atlas}/benchmark/scib/seed{seed}/{part}.csv",
    log:
        "results/{atlas}/logs/seed{seed}/score_embeddings_{part}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/score_embeddings_{part}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("score_embeddings", 4000, 20),
        runtime=minutes("score_embeddings", 360),
    params:
        runs=lambda w: shlex.quote(json.dumps(runs_of(w))),
        counts=lambda w, input: repeated("counts", input.counts),
        settings=block_flag("benchmark", "n_neighbors", "max_cells", "n_samples"),
        numerics=NUMERICS["scib"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " score-embeddings --runs {params.runs} {params.counts} --out {output:q}"
        " --seed {wildcards.seed} {params.settings}"


rule gather_scib:
    input:
        scib_parts,
    output:
        "results/{atlas}/benchmark/scib.csv",
    log:
        "results/{atlas}/logs/gather_scib.log",
    benchmark:
        "results/{atlas}/logs/gather_scib.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("gather_scib", 1000),
        runtime=minutes("gather_scib", 10),
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " gather-tables {input:q} --out {output:q}"


rule gather_history:
    input:
        reference=expand(
            "results/{{atlas}}/seed{seed}/reference/{folder}/history.csv",
            seed=CONFIG.seeds,
            folder=REFERENCE_FOLDERS,
        ),
        mapped=lambda w: [
            path
            for seed, variant, strategy, _ in mappings(CONFIG.seeds)
            for path in mapped(seed, variant, strategy)
        ],
    output:
        "results/{atlas}/benchmark/history.csv",
    log:
        "results/{atlas}/logs/gather_history.log",
    benchmark:
        "results/{atlas}/logs/gather_history.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("gather_history", 1000),
        runtime=minutes("gather_history", 20),
    params:
        mappings=lambda w: [
            path
            for seed, variant, strategy, _ in mappings(CONFIG.seeds)
            for path in histories_of(seed, variant, strategy)
        ],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " gather-history {input.reference:q} {params.mappings:q} --out {output:q}"


rule gather_certificates:
    input:
        lambda w: [
            path
            for seed, variant, strategy, _ in mappings(CONFIG.seeds)
            for path in mapped(seed, variant, strategy, "certificate.json")
            if strategy != "de_novo"
        ],
    output:
        table="results/{atlas}/benchmark/certificates.csv",
        page=report(
            "results/{atlas}/benchmark/certificates.html",
            caption="../report/certificates.rst",
            category="Certificates",
            labels={"page": "Surgery certificates"},
        ),
    log:
        "results/{atlas}/logs/gather_certificates.log",
    benchmark:
        "results/{atlas}/logs/gather_certificates.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("gather_certificates", 1000),
        runtime=minutes("gather_certificates", 10),
    params:
        certificates=lambda w: [
            path
            for seed, variant, strategy, _ in mappings(CONFIG.seeds)
            for path in of_mappings(seed, variant, strategy, "certificate.json")
            if strategy != "de_novo"
        ],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " gather-certificates {params.certificates:q} --out {output.table:q}"


rule model_card:
    input:
        bundle=expand(
            "results/{{atlas}}/seed{{seed}}/reference/{{folder}}/{file}",
            file=[*BUNDLE, "reference_latent.h5ad"],
        ),
        counts=[] if TAKEN else "results/{atlas}/data/reference.h5ad",
        calibration=lambda w: (
            f"results/{w.atlas}/seed{w.seed}/reference/{w.folder}/calibration.json"
            if CALIBRATED and w.folder != "scvi"
            else []
        ),
    output:
        "results/{atlas}/seed{seed}/reference/{folder}/card.md",
        "results/{atlas}/seed{seed}/reference/{folder}/card.json",
        report(
            "results/{atlas}/seed{seed}/reference/{folder}/card.html",
            caption="../report/model_card.rst",
            category="Model cards",
            labels={"model": "{folder}", "seed": "{seed}"},
        ),
    log:
        "results/{atlas}/logs/seed{seed}/model_card_{folder}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/model_card_{folder}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("model_card", 3000, 30),
        runtime=minutes("model_card", 240),
    params:
        settings=settings_of("card"),
        bundle=subpath(output[0], parent=True),
        counts=lambda w, input: (
            f"--counts={shlex.quote(input.counts)}" if input.counts else ""
        ),
        numerics=NUMERICS["card"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " card {params.bundle:q} {params.counts} {params.settings}"
