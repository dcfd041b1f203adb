# What users ask of every mapping, answered on their own data: snakemake audits.
AUDITED = FINAL_MODEL  # of the final variant and seed


rule audit_strategies:
    input:
        bundle=expand(
            "results/{{atlas}}/seed{seed}/reference/{folder}/{file}",
            seed=FINAL.seed,
            folder=model_folder(AUDITED),
            file=BUNDLE,
        ),
        queries=lambda w: expand(
            "results/{atlas}/data/queries/{batch}.h5ad",
            atlas=w.atlas,
            batch=query_batches(),
        ),
        per_batch=lambda w: mapped(FINAL.seed, AUDITED, "per_batch"),
        joint=lambda w: mapped(FINAL.seed, AUDITED, "joint"),
    output:
        "results/{atlas}/audit/strategies.csv",
        "results/{atlas}/audit/strategies_labels.csv",
        "results/{atlas}/audit/strategies.json",
        report(
            "results/{atlas}/audit/strategies.html",
            caption="../report/audit_strategies.rst",
            category="Audits",
            labels={"page": "Per batch or joint"},
        ),
    log:
        "results/{atlas}/logs/audit_strategies.log",
    benchmark:
        "results/{atlas}/logs/audit_strategies.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("audit_strategies", 3000, 20),
        runtime=minutes("audit_strategies", 720),
        gpu=GPU,
        device=CONFIG.device,
    params:
        settings=settings_of(SURGERY[0]),
        seed=FINAL.seed,
        bundle=lambda w, input: os.path.dirname(input.bundle[0]),
        joint=lambda w, input: os.path.dirname(input.joint[0]),
        per_batch=lambda w: repeated(
            "per_batch", of_mappings(FINAL.seed, AUDITED, "per_batch", "latent.h5ad")
        ),
        out=subpath(output[0], parent=True),
        numerics=NUMERICS["surgery"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " audit-strategies {input.queries:q} --reference_bundle {params.bundle:q}"
        " {params.per_batch} --joint {params.joint:q} --out {params.out:q}"
        " --seed {params.seed} {params.settings} --device {resources.device}"


rule audit_reference:
    input:
        bundle=expand(
            "results/{{atlas}}/seed{seed}/reference/{folder}/{file}",
            seed=FINAL.seed,
            folder=model_folder(AUDITED),
            file=[*BUNDLE, "reference_latent.h5ad"],
        ),
        cells="results/{atlas}/data/reference.h5ad",
        mapped=lambda w: mapped(FINAL.seed, AUDITED, "per_batch"),
        de_novo=lambda w: expand(
            "results/{atlas}/seed{seed}/de_novo/{batch}/{folder}/reference_latent.h5ad",
            atlas=w.atlas,
            seed=FINAL.seed,
            batch=query_batches(),
            folder=model_folder(AUDITED),
        ),
    output:
        "results/{atlas}/audit/reference.csv",
        "results/{atlas}/audit/reference_confusion.csv",
        "results/{atlas}/audit/reference.json",
        report(
            "results/{atlas}/audit/reference.html",
            caption="../report/audit_reference.rst",
            category="Audits",
            labels={"page": "Reference and query"},
        ),
    log:
        "results/{atlas}/logs/audit_reference.log",
    benchmark:
        "results/{atlas}/logs/audit_reference.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("audit_reference", 3000, 10),
        runtime=minutes("audit_reference", 120),
    params:
        bundle=lambda w, input: os.path.dirname(input.bundle[0]),
        mappings=lambda w: [
            os.path.dirname(path)
            for path in of_mappings(FINAL.seed, AUDITED, "per_batch", "latent.h5ad")
        ],
        de_novo=lambda w, input: repeated(
            "de_novo", map(os.path.dirname, input.de_novo)
        ),
        out=subpath(output[0], parent=True),
        numerics=NUMERICS["classification"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " audit-reference {params.mappings:q} --reference_bundle {params.bundle:q}"
        " --cells {input.cells:q} {params.de_novo} --out {params.out:q}"


# Of a reference that was taken over there are no counts, and without labels no accuracy.
rule audits:
    input:
        f"results/{CONFIG.atlas}/audit/strategies.html",
        (
            f"results/{CONFIG.atlas}/audit/reference.html"
            if LABELLED and not TAKEN
            else []
        ),
