# A trained reference (config key `reference`) instead of reference rows: nothing is trained.


rule take_reference:
    input:
        source=taken_source(),
        adata=taken_adata(),
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/reference/{{folder}}/{file}",
            file=[
                *BUNDLE,
                *(LEARNED if CALIBRATED else []),
                *OF_REFERENCE,
            ],
        ),
        latent="results/{atlas}/seed{seed}/reference/{folder}/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/take_reference_{folder}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/take_reference_{folder}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("take_reference", 3000, 6),
        runtime=minutes("take_reference", 60),
    params:
        source=as_is(taken_folder()),
        kind="--scvi_tools" if CONFIG.reference.scvi_tools else "",
        counts=f"--counts {CONFIG.counts}",
        adata=lambda w, input: (
            f"--adata={shlex.quote(input.adata)}" if input.adata else ""
        ),
        variant=(f"--variant {CONFIG.variants[0]}" if LABELLED and not CITESEQ else ""),
        unlabeled=as_is(CONFIG.unlabeled_category),
        categorical=as_is(repeated("categorical", CONFIG.categorical_covariates)),
        continuous=as_is(repeated("continuous", CONFIG.continuous_covariates)),
        levels=as_is(repeated("levels", CONFIG.label_levels)),
        frozen="--frozen" if set(CONFIG.strategies) == {"frozen"} else "",
        out=subpath(output.latent, parent=True),
        numerics=NUMERICS["data"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " take-reference {params.source:q} --out {params.out:q} {params.kind} {params.adata}"
        " {params.counts} {params.variant}"
        " --unlabeled={params.unlabeled:q} {params.categorical} {params.continuous}"
        " {params.levels} {params.frozen}"


rule describe_reference:
    input:
        [f"{FIRST_REFERENCE}/{file}" for file in [*BUNDLE, "reference_latent.h5ad"]],
    output:
        "results/{atlas}/data/reference.json",
    log:
        "results/{atlas}/logs/describe_reference.log",
    benchmark:
        "results/{atlas}/logs/describe_reference.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("describe_reference", 1500, 6),
        runtime=minutes("describe_reference", 10),
    params:
        folder=subpath(input[0], parent=True),
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " describe-reference {params.folder:q} --out {output:q}"
