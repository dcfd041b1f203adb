# What users ask of every mapping, answered on their own data: snakemake audits.
AUDITED = FINAL_MODEL  # of the final variant and seed


rule audit_strategies:
    input:
        bundle=bundle_in(FINAL_REFERENCE),
        queries=queries,
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
        "../../envs/atlasmap.yaml"
    resources:
        **needs("audit_strategies", 3000, 720, mb_per_mb=20, gpu=True),
    params:
        settings=settings_of(SURGERY[0]),
        seed=FINAL.seed,
        bundle=folder_of("bundle"),
        joint=folder_of("joint"),
        per_batch=lambda w: repeated("per_batch", latents(FINAL.seed, AUDITED)),
        out=subpath(output[0], parent=True),
        numerics=NUMERICS["surgery"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " audit-strategies {input.queries:q} --reference_bundle {params.bundle:q}"
        " {params.per_batch} --joint {params.joint:q} --out {params.out:q}"
        " --seed {params.seed} {params.settings} --device {resources.device}"


rule audit_reference:
    input:
        bundle=bundle_in(FINAL_REFERENCE, "reference_latent.h5ad"),
        cells="results/{atlas}/data/reference.h5ad",
        mapped=lambda w: mapped(FINAL.seed, AUDITED, "per_batch"),
        de_novo=lambda w: [
            f"{TOP}/seed{FINAL.seed}/de_novo/{batch}/{model_folder(AUDITED)}/reference_latent.h5ad"
            for batch in query_batches()
        ],
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
        "../../envs/atlasmap.yaml"
    resources:
        **needs("audit_reference", 3000, 120, mb_per_mb=10),
    params:
        bundle=folder_of("bundle"),
        mappings=lambda w: [
            os.path.dirname(path) for path in latents(FINAL.seed, AUDITED)
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
    localrule: True
