from atlasmap.config import variant_block


rule prepare_reference:
    input:
        files=lambda w: [source_path(d) for d in [*REFERENCES, *CHOOSING]],
        lengths=lambda w: gene_lengths([*REFERENCES, *CHOOSING]),
    output:
        reference="results/{atlas}/data/reference.h5ad",
        facts="results/{atlas}/data/reference.json",
    log:
        "results/{atlas}/logs/prepare_reference.log",
    benchmark:
        "results/{atlas}/logs/prepare_reference.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("prepare_reference", 2000, 12),
        runtime=minutes("prepare_reference", 60),
        checking=f"{CHECKING} {SHARED}",
        # The sheet of labels is no input: only what tree_key says of it prepares anew.
        tree=tree_of_reference(),
    params:
        datasets=lambda w: shlex.quote(
            json.dumps([row(d, "label_key", "gene_lengths") for d in REFERENCES])
        ),
        queries=lambda w: (
            "--queries "
            + shlex.quote(json.dumps([row(d, "gene_lengths") for d in CHOOSING]))
            if CHOOSING
            else ""
        ),
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
        " prepare-reference {input.files:q} --datasets {params.datasets} {params.queries}"
        " {resources.tree} --tree_key={params.tree_key:q} {params.config}"
        " {resources.checking} --out {output.reference:q} --facts {output.facts:q}"


# ancient(contract.json): every file is checked before anything trains, and next month's query
# batch, which rewrites the contract, retrains nothing.


rule train_scvi:
    input:
        reference="results/{atlas}/data/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
    output:
        expand("results/{{atlas}}/seed{{seed}}/reference/scvi/{file}", file=BUNDLE),
        latent="results/{atlas}/seed{seed}/reference/scvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_scvi.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_scvi.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("train_scvi", 3000, 20),
        runtime=minutes("train_scvi", 720),
        gpu=GPU,
        device=CONFIG.device,
        running=RUNNING,
    params:
        settings=settings_of("scvi"),
        out=subpath(output.latent, parent=True),
        numerics=NUMERICS["scvi"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " train-scvi {input.reference:q} --out {params.out:q} --seed {wildcards.seed}"
        " {params.settings} --device {resources.device} {resources.running}"


rule train_scanvi:
    input:
        reference="results/{atlas}/data/reference.h5ad",
        scvi=expand("results/{{atlas}}/seed{{seed}}/reference/scvi/{file}", file=BUNDLE),
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/reference/scanvi_{{variant}}/{file}",
            file=BUNDLE,
        ),
        latent="results/{atlas}/seed{seed}/reference/scanvi_{variant}/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_scanvi_{variant}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_scanvi_{variant}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("train_scanvi", 3000, 20),
        runtime=minutes("train_scanvi", 720),
        gpu=GPU,
        device=CONFIG.device,
        running=RUNNING,
    params:
        settings=lambda w: as_flag("scanvi", variant_block(config, w.variant)),
        scvi=lambda w, input: os.path.dirname(input.scvi[0]),
        out=subpath(output.latent, parent=True),
        numerics=NUMERICS["scanvi"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " train-scanvi {input.reference:q} --scvi_bundle {params.scvi:q}"
        " --variant {wildcards.variant} --out {params.out:q} --seed {wildcards.seed}"
        " {params.settings} --device {resources.device} {resources.running}"


rule train_totalvi:
    input:
        reference="results/{atlas}/data/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/reference/totalvi/{file}",
            file=BUNDLE,
        ),
        latent="results/{atlas}/seed{seed}/reference/totalvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_totalvi.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_totalvi.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("train_totalvi", 3000, 20),
        runtime=minutes("train_totalvi", 720),
        gpu=GPU,
        device=CONFIG.device,
        running=RUNNING,
    params:
        settings=settings_of("totalvi"),
        out=subpath(output.latent, parent=True),
        numerics=NUMERICS["totalvi"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " train-totalvi {input.reference:q} --out {params.out:q} --seed {wildcards.seed}"
        " {params.settings} --device {resources.device} {resources.running}"


rule denoise_reference:
    input:
        reference="results/{atlas}/data/reference.h5ad",
        bundle=expand(
            "results/{{atlas}}/seed{{seed}}/reference/totalvi/{file}", file=BUNDLE
        ),
    output:
        "results/{atlas}/seed{seed}/reference/totalvi/denoised.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/denoise_reference.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/denoise_reference.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("denoise_reference", 3000, 120),
        runtime=minutes("denoise_reference", 360),
        gpu=GPU,
        device=CONFIG.device,
    params:
        settings=settings_of("denoise"),
        bundle=lambda w, input: os.path.dirname(input.bundle[0]),
        numerics=NUMERICS["denoise"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " denoise {input.reference:q} --bundle {params.bundle:q} --out {output:q}"
        " {params.settings} --device {resources.device}"
