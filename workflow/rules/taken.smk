# A trained reference (config key `reference`) instead of reference rows: nothing is trained.


rule take_reference:
    input:
        source=taken_source(),
        adata=taken_adata(),
    output:
        bundle_in(
            "seed{seed}/reference/{folder}",
            *(LEARNED if CALIBRATED else []),
            *OF_REFERENCE,
        ),
        latent="results/{atlas}/seed{seed}/reference/{folder}/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/take_reference_{folder}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/take_reference_{folder}.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("take_reference", 3000, 60, mb_per_mb=6),
    params:
        source=taken_flags,
        required=as_is(required_flags()),
        out=subpath(output.latent, parent=True),
        numerics=NUMERICS["data"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " take-reference {params.source} --out {params.out:q} {params.required}"


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
        "../../envs/atlasmap.yaml"
    resources:
        **needs("describe_reference", 1500, 10, mb_per_mb=6),
    params:
        folder=subpath(input[0], parent=True),
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " describe-reference {params.folder:q} --out {output:q}"
