# Reference and query trained on together, the query unlabelled. A cohort is one query batch (for
# the audit of the reference) or all of them (strategy de_novo).


rule join_cohort:
    input:
        reference="results/{atlas}/data/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
        queries=lambda w: expand(
            "results/{atlas}/data/queries/{batch}.h5ad",
            atlas=w.atlas,
            batch=cohort_batches(w.cohort),
        ),
    output:
        "results/{atlas}/data/cohorts/{cohort}.h5ad",
    log:
        "results/{atlas}/logs/join_cohort/{cohort}.log",
    benchmark:
        "results/{atlas}/logs/join_cohort/{cohort}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("join_cohort", 1500, 6),
        runtime=minutes("join_cohort", 30),
    params:
        numerics=NUMERICS["data"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " join-cohort {input.queries:q} --reference {input.reference:q} --out {output:q}"


use rule train_scvi as train_de_novo_scvi with:
    input:
        reference="results/{atlas}/data/cohorts/{cohort}.h5ad",
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/de_novo/{{cohort}}/scvi/{file}",
            file=BUNDLE,
        ),
        latent="results/{atlas}/seed{seed}/de_novo/{cohort}/scvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_de_novo_scvi/{cohort}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_de_novo_scvi/{cohort}.tsv"


use rule train_scanvi as train_de_novo_scanvi with:
    input:
        reference="results/{atlas}/data/cohorts/{cohort}.h5ad",
        scvi=expand(
            "results/{{atlas}}/seed{{seed}}/de_novo/{{cohort}}/scvi/{file}",
            file=BUNDLE,
        ),
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/de_novo/{{cohort}}/scanvi_{{variant}}/{file}",
            file=BUNDLE,
        ),
        latent="results/{atlas}/seed{seed}/de_novo/{cohort}/scanvi_{variant}/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_de_novo_scanvi_{variant}/{cohort}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_de_novo_scanvi_{variant}/{cohort}.tsv"


use rule train_totalvi as train_de_novo_totalvi with:
    input:
        reference="results/{atlas}/data/cohorts/{cohort}.h5ad",
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/de_novo/{{cohort}}/totalvi/{file}",
            file=BUNDLE,
        ),
        latent="results/{atlas}/seed{seed}/de_novo/{cohort}/totalvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_de_novo_totalvi/{cohort}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_de_novo_totalvi/{cohort}.tsv"


rule split_cohort:
    input:
        lambda w: f"results/{w.atlas}/seed{w.seed}/de_novo/all/{model_folder(w.variant)}/reference_latent.h5ad",
    output:
        reference="results/{atlas}/seed{seed}/mapping/{variant}/de_novo/all/reference_latent.h5ad",
        query="results/{atlas}/seed{seed}/mapping/{variant}/de_novo/all/latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/split_cohort_{variant}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/split_cohort_{variant}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("split_cohort", 1500, 6),
        runtime=minutes("split_cohort", 30),
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " split-cohort {input:q} --reference {output.reference:q} --query {output.query:q}"


use rule fit_umap as fit_umap_de_novo with:
    input:
        "results/{atlas}/seed{seed}/mapping/{variant}/de_novo/all/reference_latent.h5ad",
    output:
        "results/{atlas}/seed{seed}/mapping/{variant}/de_novo/all/umap.npz",
    log:
        "results/{atlas}/logs/seed{seed}/fit_umap_de_novo_{variant}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/fit_umap_de_novo_{variant}.tsv"


# No reference is kept, so there is nothing that could have learned how far to trust its labels.
use rule assemble as assemble_de_novo with:
    input:
        reference="results/{atlas}/seed{seed}/mapping/{variant}/de_novo/all/reference_latent.h5ad",
        umap="results/{atlas}/seed{seed}/mapping/{variant}/de_novo/all/umap.npz",
        mapped=lambda w: mapped(w.seed, w.variant, "de_novo"),
        queries=lambda w: expand(
            "results/{atlas}/data/queries/{batch}.h5ad",
            atlas=w.atlas,
            batch=query_batches(),
        ),
        tree=label_tree(),
        calibration=[],
        bundle=[],
    output:
        atlas="results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/atlas.h5ad",
        labels=(
            [
                "results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/labels.csv",
                "results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/soft_labels.parquet",
            ]
            if LABELLED
            else []
        ),
    log:
        "results/{atlas}/logs/seed{seed}/assemble_{variant}_{strategy}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/assemble_{variant}_{strategy}.tsv"
    wildcard_constraints:
        strategy="de_novo",
