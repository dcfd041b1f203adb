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
        **asked("take_reference", 3000, 60, mb_per_mb=6),
    params:
        source=taken_flags,
        counts_on=as_is(counted_on()),
        out=subpath(output.latent, parent=True),
        numerics=NUMERICS["data"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " take-reference {params.source} --out {params.out:q} {params.counts_on}"


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
        **asked("describe_reference", 1500, 10, mb_per_mb=6),
    params:
        folder=subpath(input[0], parent=True),
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " describe-reference {params.folder:q} --out {output:q}"
