rule plot_loss_curves:
    input:
        "results/{atlas}/benchmark/history.csv",
    output:
        report(
            "results/{atlas}/figures/loss_curves.svg",
            caption="../report/loss_curves.rst",
            category="Training",
            labels={"figure": "Loss curves"},
        ),
        "results/{atlas}/figures/loss_curves.png",
    log:
        "results/{atlas}/logs/plot_loss_curves.log",
    benchmark:
        "results/{atlas}/logs/plot_loss_curves.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        attempt=this_attempt,
        mem_mb=memory("plot_loss_curves", 1500),
        runtime=minutes("plot_loss_curves", 10),
    params:
        out=subpath(output[0], strip_suffix=".svg"),
        numerics=NUMERICS["figures"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " plot-loss-curves {input:q} --out {params.out:q}"


rule plot_confusion:
    input:
        "results/{atlas}/benchmark/confusion.csv",
    output:
        report(
            "results/{atlas}/figures/confusion_{split}.svg",
            caption="../report/confusion.rst",
            category="Labels",
            labels={"figure": "Confusion, {split}"},
        ),
        "results/{atlas}/figures/confusion_{split}.png",
    log:
        "results/{atlas}/logs/plot_confusion_{split}.log",
    benchmark:
        "results/{atlas}/logs/plot_confusion_{split}.tsv"
    wildcard_constraints:
        split="validation|query",
    conda:
        CONDA
    threads: 1
    resources:
        attempt=this_attempt,
        mem_mb=memory("plot_confusion", 1500),
        runtime=minutes("plot_confusion", 10),
    params:
        out=subpath(output[0], strip_suffix=".svg"),
        numerics=NUMERICS["figures"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " plot-confusion {input:q} --split {wildcards.split} --out {params.out:q}"


rule plot_embeddings:
    input:
        [path for *_, path in mappings([FINAL.seed])],
    output:
        report(
            "results/{atlas}/figures/embeddings.svg",
            caption="../report/embeddings.rst",
            category="Atlas",
            labels={"figure": "Embeddings"},
        ),
        "results/{atlas}/figures/embeddings.png",
    log:
        "results/{atlas}/logs/plot_embeddings.log",
    benchmark:
        "results/{atlas}/logs/plot_embeddings.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        attempt=this_attempt,
        mem_mb=memory("plot_embeddings", 2000, 4),
        runtime=minutes("plot_embeddings", 30),
    params:
        runs=shlex.quote(
            json.dumps(
                [
                    dict(variant=v, strategy=t, atlas=p)
                    for _, v, t, p in mappings([FINAL.seed])
                ]
            )
        ),
        out=subpath(output[0], strip_suffix=".svg"),
        numerics=NUMERICS["figures"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " plot-embeddings --runs {params.runs} --out {params.out:q}"


rule plot_scib_table:
    input:
        "results/{atlas}/benchmark/scib.csv",
    output:
        report(
            "results/{atlas}/figures/scib_table.svg",
            caption="../report/scib_table.rst",
            category="Benchmark",
            labels={"figure": "scib-metrics"},
        ),
        "results/{atlas}/figures/scib_table.png",
    log:
        "results/{atlas}/logs/plot_scib_table.log",
    benchmark:
        "results/{atlas}/logs/plot_scib_table.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        attempt=this_attempt,
        mem_mb=memory("plot_scib_table", 1500),
        runtime=minutes("plot_scib_table", 10),
    params:
        out=subpath(output[0], strip_suffix=".svg"),
        numerics=NUMERICS["figures"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " plot-scib-table {input:q} --out {params.out:q}"


rule plot_reliability:
    input:
        "results/{atlas}/benchmark/reliability.csv",
    output:
        report(
            "results/{atlas}/figures/reliability.svg",
            caption="../report/reliability.rst",
            category="Labels",
            labels={"figure": "Reliability"},
        ),
        "results/{atlas}/figures/reliability.png",
    log:
        "results/{atlas}/logs/plot_reliability.log",
    benchmark:
        "results/{atlas}/logs/plot_reliability.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        attempt=this_attempt,
        mem_mb=memory("plot_reliability", 1500),
        runtime=minutes("plot_reliability", 10),
    params:
        out=subpath(output[0], strip_suffix=".svg"),
        numerics=NUMERICS["figures"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " plot-reliability {input:q} --out {params.out:q}"


rule plot_risk_coverage:
    input:
        "results/{atlas}/benchmark/risk_coverage.csv",
    output:
        report(
            "results/{atlas}/figures/risk_coverage.svg",
            caption="../report/risk_coverage.rst",
            category="Labels",
            labels={"figure": "Risk and coverage"},
        ),
        "results/{atlas}/figures/risk_coverage.png",
    log:
        "results/{atlas}/logs/plot_risk_coverage.log",
    benchmark:
        "results/{atlas}/logs/plot_risk_coverage.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        attempt=this_attempt,
        mem_mb=memory("plot_risk_coverage", 1500),
        runtime=minutes("plot_risk_coverage", 10),
    params:
        out=subpath(output[0], strip_suffix=".svg"),
        risk=f"--risk {CONFIG.calibration.risk}" if CALIBRATED and not TAKEN else "",
        numerics=NUMERICS["figures"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " plot-risk-coverage {input:q} --out {params.out:q} {params.risk}"


rule plot_shifts:
    input:
        "results/{atlas}/benchmark/shifts.csv",
    output:
        report(
            "results/{atlas}/figures/shifts.svg",
            caption="../report/shifts.rst",
            category="Labels",
            labels={"figure": "Labels that moved"},
        ),
        "results/{atlas}/figures/shifts.png",
    log:
        "results/{atlas}/logs/plot_shifts.log",
    benchmark:
        "results/{atlas}/logs/plot_shifts.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        attempt=this_attempt,
        mem_mb=memory("plot_shifts", 1500),
        runtime=minutes("plot_shifts", 10),
    params:
        out=subpath(output[0], strip_suffix=".svg"),
        final=f"--variant {FINAL.variant} --strategy {FINAL.strategy} --seed {FINAL.seed}",
        numerics=NUMERICS["figures"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " plot-shifts {input:q} --out {params.out:q} {params.final}"


rule plot_proteins:
    input:
        atlas=f"results/{{atlas}}/seed{FINAL.seed}/mapping/{FINAL_MODEL}/{FINAL.strategy}/atlas.h5ad",
        reference=f"results/{{atlas}}/seed{FINAL.seed}/reference/{FINAL_MODEL}/denoised.h5ad",
        mapped=lambda w: mapped(FINAL.seed, FINAL_MODEL, FINAL.strategy),
    output:
        [
            report(
                f"results/{{atlas}}/figures/protein_{name}.svg",
                caption="../report/proteins.rst",
                category="Proteins",
                labels={"figure": f"Proteins, {name}"},
            )
            for name in ("ridges", "dots")
        ],
        [f"results/{{atlas}}/figures/protein_{name}.png" for name in ("ridges", "dots")],
    log:
        "results/{atlas}/logs/plot_proteins.log",
    benchmark:
        "results/{atlas}/logs/plot_proteins.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        attempt=this_attempt,
        mem_mb=memory("plot_proteins", 2000, 4),
        runtime=minutes("plot_proteins", 20),
    params:
        denoised=lambda w: of_mappings(
            FINAL.seed, FINAL_MODEL, FINAL.strategy, "denoised.h5ad"
        ),
        out=subpath(output[0], parent=True),
        numerics=NUMERICS["figures"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " plot-proteins {input.reference:q} {params.denoised:q} --atlas {input.atlas:q}"
        " --out {params.out:q}"
