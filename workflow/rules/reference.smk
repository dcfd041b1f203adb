rule prepare_reference:
    input:
        files=[source_path(dataset) for dataset in [*REFERENCES, *CHOOSING]],
        lengths=gene_lengths([*REFERENCES, *CHOOSING]),
    output:
        reference="results/{atlas}/data/reference.h5ad",
        facts="results/{atlas}/data/reference.json",
    log:
        "results/{atlas}/logs/prepare_reference.log",
    benchmark:
        "results/{atlas}/logs/prepare_reference.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("prepare_reference", 2000, 60, mb_per_mb=12, streams=True),
        checking=f"{CHECKING} {SHARED}",
        # The sheet of labels is no input: only what tree_key says of it prepares anew.
        tree=tree_of_reference(),
    params:
        datasets=as_is(reference_rows()),
        config=data_flag(
            "n_top_genes",
            "min_cells_per_label",
            "min_cells_per_batch",
            "mask_proteins",
        ),
        tree_key=lambda w: key_of_tree(w.atlas),
        numerics=NUMERICS["data"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " prepare-reference {input.files:q} {params.datasets}"
        " {resources.tree} --tree_key={params.tree_key:q} {params.config}"
        " {resources.checking} --out {output.reference:q} --facts {output.facts:q}"


# ancient(contract.json): every file is checked before anything trains, and next month's query
# batch, which rewrites the contract, retrains nothing.


rule train_scvi:
    input:
        reference="results/{atlas}/data/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
    output:
        bundle_in("seed{seed}/reference/scvi"),
        latent="results/{atlas}/seed{seed}/reference/scvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_scvi.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_scvi.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("train_scvi", 3000, 720, mb_per_mb=20, gpu=True, streams=True),
    params:
        model="scvi",
        settings=settings_of("scvi"),
        out=subpath(output.latent, parent=True),
        numerics=NUMERICS["scvi"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " train-{params.model} {input.reference:q} --out {params.out:q}"
        " --seed {wildcards.seed} {params.settings}"
        " --device {resources.device} {resources.running}"


use rule train_scvi as train_totalvi with:
    output:
        bundle_in("seed{seed}/reference/totalvi"),
        latent="results/{atlas}/seed{seed}/reference/totalvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_totalvi.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_totalvi.tsv"
    resources:
        **needs("train_totalvi", 3000, 720, mb_per_mb=20, gpu=True, streams=True),
    params:
        model="totalvi",
        settings=settings_of("totalvi"),
        out=subpath(output.latent, parent=True),
        numerics=NUMERICS["totalvi"],


rule train_scanvi:
    input:
        reference="results/{atlas}/data/reference.h5ad",
        scvi=bundle_in("seed{seed}/reference/scvi"),
    output:
        bundle_in("seed{seed}/reference/scanvi_{variant}"),
        latent="results/{atlas}/seed{seed}/reference/scanvi_{variant}/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_scanvi_{variant}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_scanvi_{variant}.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("train_scanvi", 3000, 720, mb_per_mb=20, gpu=True, streams=True),
    params:
        settings=lambda w: as_flag("scanvi", variant_block(config, w.variant)),
        scvi=folder_of("scvi"),
        out=subpath(output.latent, parent=True),
        numerics=NUMERICS["scanvi"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " train-scanvi {input.reference:q} --scvi_bundle {params.scvi:q}"
        " --variant {wildcards.variant} --out {params.out:q} --seed {wildcards.seed}"
        " {params.settings} --device {resources.device} {resources.running}"


rule denoise_reference:
    input:
        reference="results/{atlas}/data/reference.h5ad",
        bundle=bundle_in("seed{seed}/reference/totalvi"),
    output:
        "results/{atlas}/seed{seed}/reference/totalvi/denoised.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/denoise_reference.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/denoise_reference.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("denoise_reference", 3000, 360, mb_per_mb=120, gpu=True),
    params:
        settings=settings_of("denoise"),
        bundle=folder_of("bundle"),
        numerics=NUMERICS["denoise"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " denoise {input.reference:q} --bundle {params.bundle:q} --out {output:q}"
        " {params.settings} --device {resources.device}"
