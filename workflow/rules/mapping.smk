rule map_per_batch:
    input:
        bundle=reference_of,
        contract=CONTRACT,
        queries=queries_of_job,
    output:
        # Not the batches' folders, which would be removed when one of the job's batches fails.
        "results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/.mapped/{job}.json",
    log:
        "results/{atlas}/logs/seed{seed}/map_{strategy}_{variant}/{job}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/map_{strategy}_{variant}/{job}.tsv"
    wildcard_constraints:
        strategy="per_batch|frozen",
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs(
            "map_per_batch",
            3000,
            60,
            mb_per_mb=20,
            minutes_per_input=15,
            gpu=True,
            streams=True,
            largest=True,
        ),
    params:
        strategy=lambda w, output: f"{w.strategy} --marker {shlex.quote(output[0])}",
        settings=settings_of(*SURGERY),
        bundle=folder_of("bundle"),
        out=subpath(output[0], ancestor=2),
        probe=PROBE,
        numerics=NUMERICS["surgery"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " map-batches {input.queries:q} --reference_bundle {params.bundle:q}"
        " --out {params.out:q} --strategy {params.strategy} --seed {wildcards.seed}"
        " {params.settings} {params.probe} --device {resources.device} {resources.running}"


# For whoever names a file of one batch that is missing; the workflow itself asks for the markers.
use rule map_per_batch as map_batch with:
    input:
        bundle=reference_of,
        queries="results/{atlas}/data/queries/{batch}.h5ad",
    output:
        bundle_in("seed{seed}/mapping/{variant}/{strategy}/{batch}", *DENOISED),
        latent="results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/{batch}/latent.h5ad",
        certificate="results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/{batch}/certificate.json",
    log:
        "results/{atlas}/logs/seed{seed}/map_batch_{strategy}_{variant}/{batch}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/map_batch_{strategy}_{variant}/{batch}.tsv"
    wildcard_constraints:
        strategy="per_batch|frozen",
    params:
        strategy="{strategy}",
        settings=settings_of(*SURGERY),
        bundle=folder_of("bundle"),
        out=subpath(output.latent, ancestor=2),
        probe=PROBE,
        numerics=NUMERICS["surgery"],


use rule map_per_batch as map_joint with:
    input:
        bundle=reference_of,
        contract=CONTRACT,
        queries=queries,
    output:
        bundle_in("seed{seed}/mapping/{variant}/joint/all", *DENOISED),
        latent="results/{atlas}/seed{seed}/mapping/{variant}/joint/all/latent.h5ad",
        certificate="results/{atlas}/seed{seed}/mapping/{variant}/joint/all/certificate.json",
    log:
        "results/{atlas}/logs/seed{seed}/map_joint_{variant}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/map_joint_{variant}.tsv"
    resources:
        **needs("map_joint", 3000, 720, mb_per_mb=20, gpu=True, streams=True),
    params:
        strategy="joint",
        settings=settings_of(*SURGERY),
        bundle=folder_of("bundle"),
        out=subpath(output.latent, parent=True),
        probe=PROBE,
        numerics=NUMERICS["surgery"],
