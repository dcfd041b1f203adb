# Reference and query trained on together, the query unlabelled: with one query batch for the audit of
# the reference, with `all` of them for the strategy de_novo.


rule join_query:
    input:
        reference="results/{atlas}/data/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
        queries=lambda w: queries(w) if w.joined == "all" else prepared(w.joined),
    output:
        "results/{atlas}/data/cohorts/{joined}.h5ad",
    log:
        "results/{atlas}/logs/join_query/{joined}.log",
    benchmark:
        "results/{atlas}/logs/join_query/{joined}.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("join_query", 1500, 30, mb_per_mb=6),
    params:
        numerics=NUMERICS["data"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " join-query {input.queries:q} --reference {input.reference:q} --out {output:q}"


use rule train_scvi as train_de_novo_scvi with:
    input:
        reference="results/{atlas}/data/cohorts/{joined}.h5ad",
    output:
        bundle_in("seed{seed}/de_novo/{joined}/scvi"),
        latent="results/{atlas}/seed{seed}/de_novo/{joined}/scvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_de_novo_scvi/{joined}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_de_novo_scvi/{joined}.tsv"


use rule train_scanvi as train_de_novo_scanvi with:
    input:
        reference="results/{atlas}/data/cohorts/{joined}.h5ad",
        scvi=bundle_in("seed{seed}/de_novo/{joined}/scvi"),
    output:
        bundle_in("seed{seed}/de_novo/{joined}/scanvi_{variant}"),
        latent="results/{atlas}/seed{seed}/de_novo/{joined}/scanvi_{variant}/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_de_novo_scanvi_{variant}/{joined}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_de_novo_scanvi_{variant}/{joined}.tsv"


use rule train_totalvi as train_de_novo_totalvi with:
    input:
        reference="results/{atlas}/data/cohorts/{joined}.h5ad",
    output:
        bundle_in("seed{seed}/de_novo/{joined}/totalvi"),
        latent="results/{atlas}/seed{seed}/de_novo/{joined}/totalvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_de_novo_totalvi/{joined}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_de_novo_totalvi/{joined}.tsv"


# The two parts of the latent, and the map of the first.
rule split_latent:
    input:
        lambda w: f"{TOP}/seed{w.seed}/de_novo/all/{model_folder(w.variant)}/reference_latent.h5ad",
    output:
        reference="results/{atlas}/seed{seed}/mapping/{variant}/de_novo/all/reference_latent.h5ad",
        query="results/{atlas}/seed{seed}/mapping/{variant}/de_novo/all/latent.h5ad",
        umap="results/{atlas}/seed{seed}/mapping/{variant}/de_novo/all/umap.npz",
    log:
        "results/{atlas}/logs/seed{seed}/split_latent_{variant}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/split_latent_{variant}.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("split_latent", 3000, 120, mb_per_mb=20),
    params:
        settings=settings_of("umap"),
        numerics=NUMERICS["umap"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " split-latent {input:q} --reference {output.reference:q} --query {output.query:q}"
        " --map {output.umap:q} --seed {wildcards.seed} {params.settings}"


# No reference is kept, so there is nothing that could have learned how far to trust its labels.
use rule assemble as assemble_de_novo with:
    input:
        reference=reference_latent,
        umap="results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/all/umap.npz",
        mapped=lambda w: mapped(w.seed, w.variant, "de_novo"),
        queries=queries,
        tree=label_tree(),
        calibration=[],
        bundle=[],
    output:
        in_mapping("atlas.h5ad"),
        labels=in_mapping("labels.csv", "soft_labels.parquet") if LABELLED else [],
        opinions=OPINIONS,
    log:
        "results/{atlas}/logs/seed{seed}/assemble_{variant}_{strategy}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/assemble_{variant}_{strategy}.tsv"
    wildcard_constraints:
        strategy="de_novo",
        variant=one_of(MODELS),
