rule fit_umap:
    input:
        "results/{atlas}/seed{seed}/reference/{folder}/reference_latent.h5ad",
    output:
        "results/{atlas}/seed{seed}/reference/{folder}/umap.npz",
    log:
        "results/{atlas}/logs/seed{seed}/fit_umap_{folder}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/fit_umap_{folder}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("fit_umap", 3000, 20),
        runtime=minutes("fit_umap", 120),
    params:
        settings=settings_of("umap"),
        numerics=NUMERICS["umap"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " fit-umap {input:q} --out {output:q} --seed {wildcards.seed} {params.settings}"


# Last of what is made of a reference: one fingerprint over its files, for whoever maps onto it.
rule seal_reference:
    input:
        bundle=expand(
            "results/{{atlas}}/seed{{seed}}/reference/{{folder}}/{file}",
            file=[*BUNDLE, "reference_latent.h5ad"],
        ),
        beside=beside_reference,
    output:
        "results/{atlas}/seed{seed}/reference/{folder}/seal.json",
    log:
        "results/{atlas}/logs/seed{seed}/seal_{folder}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/seal_{folder}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("seal_reference", 1500, 6),
        runtime=minutes("seal_reference", 30),
    params:
        bundle=subpath(output[0], parent=True),
        numerics=NUMERICS["seal"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}" " seal {params.bundle:q}"


rule assemble:
    input:
        reference=lambda w: f"results/{w.atlas}/seed{w.seed}/reference/{model_folder(w.variant)}/reference_latent.h5ad",
        umap=lambda w: f"results/{w.atlas}/seed{w.seed}/reference/{model_folder(w.variant)}/umap.npz",
        mapped=lambda w: mapped(w.seed, w.variant, w.strategy),
        queries=lambda w: expand(
            "results/{atlas}/data/queries/{batch}.h5ad",
            atlas=w.atlas,
            batch=query_batches(),
        ),
        tree=label_tree(),
        # beside the latents, where their command finds them
        denoised=lambda w: [
            f"results/{w.atlas}/seed{w.seed}/reference/totalvi/{file}"
            for file in OF_REFERENCE
        ],
        calibration=calibration_of,
        bundle=lambda w: (
            expand(
                "results/{atlas}/seed{seed}/reference/{folder}/{file}",
                atlas=w.atlas,
                seed=w.seed,
                folder=model_folder(w.variant),
                file=BUNDLE,
            )
            if CALIBRATED
            else []
        ),
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
        calibrated=(
            [
                "results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/soft_labels_calibrated.parquet",
                "results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/shifts.csv",
            ]
            if CALIBRATED
            else []
        ),
    log:
        "results/{atlas}/logs/seed{seed}/assemble_{variant}_{strategy}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/assemble_{variant}_{strategy}.tsv"
    wildcard_constraints:
        strategy="per_batch|joint|frozen",
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("assemble", 3000, 10),
        runtime=minutes("assemble", 120),
    params:
        settings=settings_of("transfer"),
        latents=lambda w: of_mappings(w.seed, w.variant, w.strategy, "latent.h5ad"),
        queries=lambda w, input: repeated("queries", input.queries),
        trust=lambda w, input: beside_calibration(input.calibration),
        levels=as_is(repeated("levels", CONFIG.label_levels)),
        tree=tree_flag,
        out=subpath(output.atlas, parent=True),
        numerics=NUMERICS["transfer"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " assemble {params.latents:q} --reference_latent {input.reference:q}"
        " --umap {input.umap:q} {params.queries} --out {params.out:q}"
        " {params.settings} {params.levels} {params.tree}"
        " {params.trust}"


rule second_opinions:
    input:
        reference=latent_of_reference,
        mapped=lambda w: mapped(w.seed, w.variant, w.strategy),
        queries=lambda w: expand(
            "results/{atlas}/data/queries/{batch}.h5ad",
            atlas=w.atlas,
            batch=query_batches(),
        ),
        calibration=of_opinions,
    output:
        table="results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/opinions.parquet",
        # Among the logs: no two runs take the same time, and results are the same bits.
        seconds="results/{atlas}/logs/seed{seed}/second_opinions_{variant}_{strategy}.seconds.csv",
    log:
        "results/{atlas}/logs/seed{seed}/second_opinions_{variant}_{strategy}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/second_opinions_{variant}_{strategy}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("second_opinions", 3000, 10),
        runtime=minutes("second_opinions", 360),
    params:
        settings=settings_of("transfer"),
        latents=lambda w: of_mappings(w.seed, w.variant, w.strategy, "latent.h5ad"),
        queries=lambda w, input: repeated("queries", input.queries),
        trust=lambda w, input: beside_calibration(input.calibration),
        numerics=NUMERICS["transfer"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " second-opinions {params.latents:q} --reference_latent {input.reference:q}"
        " {params.queries} --out {output.table:q} --seconds {output.seconds:q}"
        " --seed {wildcards.seed}"
        " {params.settings} {params.trust}"


rule gene_gap:
    input:
        facts=lambda w: expand(
            "results/{atlas}/data/queries/{batch}.json",
            atlas=w.atlas,
            batch=query_batches(),
        ),
        bundle=expand(
            "results/{{atlas}}/seed{seed}/reference/{folder}/{file}",
            seed=FINAL.seed,
            folder=model_folder(FINAL_MODEL),
            file=[*BUNDLE, "reference_latent.h5ad"],
        ),
        reference="results/{atlas}/data/reference.h5ad",
    output:
        "results/{atlas}/benchmark/gene_gap.csv",
    log:
        "results/{atlas}/logs/gene_gap.log",
    benchmark:
        "results/{atlas}/logs/gene_gap.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("gene_gap", 2000, 6),
        runtime=minutes("gene_gap", 60),
    params:
        bundle=lambda w, input: os.path.dirname(input.bundle[0]),
        numerics=NUMERICS["classification"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " gene-gap {input.facts:q} --bundle {params.bundle:q}"
        " --reference {input.reference:q} --out {output:q}"


rule publish:
    input:
        file=f"results/{{atlas}}/seed{FINAL.seed}/mapping/{FINAL_MODEL}/{FINAL.strategy}/{{file}}",
        seeds=(
            [
                f"results/{{atlas}}/seed{seed}/mapping/{FINAL_MODEL}/{FINAL.strategy}/labels.csv"
                for seed in sorted(CONFIG.seeds, key=lambda seed: seed != FINAL.seed)
            ]
            if LABELLED and len(CONFIG.seeds) > 1
            else []
        ),
    output:
        "results/{atlas}/{file}",
    log:
        "results/{atlas}/logs/publish/{file}.log",
    benchmark:
        "results/{atlas}/logs/publish/{file}.tsv"
    wildcard_constraints:
        file=r"atlas\.h5ad|labels\.csv",
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("publish", 500, 4),
        runtime=minutes("publish", 30),
    params:
        seeds=lambda w, input: repeated("seeds", input.seeds),
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " publish {input.file:q} --out {output:q} {params.seeds}"
