from atlasmap.jobs.packing import members


rule map_per_batch:
    input:
        bundle=lambda w: expand(
            "results/{atlas}/seed{seed}/reference/{folder}/{file}",
            atlas=w.atlas,
            seed=w.seed,
            folder=model_folder(w.variant),
            file=BUNDLE,
        ),
        contract=CONTRACT,
        queries=lambda w: expand(
            "results/{atlas}/data/queries/{batch}.h5ad",
            atlas=w.atlas,
            batch=members(w.job, query_batches()),
        ),
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
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("map_per_batch", 3000, 20, together=False),
        runtime=minutes("map_per_batch", 60, an_input=15),
        gpu=GPU,
        device=CONFIG.device,
        running=RUNNING,
    params:
        settings=settings_of(*SURGERY),
        bundle=lambda w, input: os.path.dirname(input.bundle[0]),
        out=subpath(output[0], ancestor=2),
        probe=PROBE,
        numerics=NUMERICS["surgery"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " map-batches {input.queries:q} --reference_bundle {params.bundle:q}"
        " --out {params.out:q} --marker {output:q} --strategy {wildcards.strategy}"
        " --seed {wildcards.seed} {params.settings} {params.probe}"
        " --device {resources.device} {resources.running}"


# For whoever names a file of one batch that is missing; the workflow itself asks for the markers.
rule map_batch:
    input:
        bundle=lambda w: expand(
            "results/{atlas}/seed{seed}/reference/{folder}/{file}",
            atlas=w.atlas,
            seed=w.seed,
            folder=model_folder(w.variant),
            file=BUNDLE,
        ),
        query="results/{atlas}/data/queries/{batch}.h5ad",
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/mapping/{{variant}}/{{strategy}}/{{batch}}/{file}",
            file=[*BUNDLE, *DENOISED],
        ),
        latent="results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/{batch}/latent.h5ad",
        certificate="results/{atlas}/seed{seed}/mapping/{variant}/{strategy}/{batch}/certificate.json",
    log:
        "results/{atlas}/logs/seed{seed}/map_batch_{strategy}_{variant}/{batch}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/map_batch_{strategy}_{variant}/{batch}.tsv"
    wildcard_constraints:
        strategy="per_batch|frozen",
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("map_per_batch", 3000, 20),
        runtime=minutes("map_per_batch", 120),
        gpu=GPU,
        device=CONFIG.device,
        running=RUNNING,
    params:
        settings=settings_of(*SURGERY),
        bundle=lambda w, input: os.path.dirname(input.bundle[0]),
        out=subpath(output.latent, ancestor=2),
        probe=PROBE,
        numerics=NUMERICS["surgery"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " map-batches {input.query:q} --reference_bundle {params.bundle:q}"
        " --out {params.out:q} --strategy {wildcards.strategy} --seed {wildcards.seed}"
        " {params.settings} {params.probe}"
        " --device {resources.device} {resources.running}"


rule map_joint:
    input:
        bundle=lambda w: expand(
            "results/{atlas}/seed{seed}/reference/{folder}/{file}",
            atlas=w.atlas,
            seed=w.seed,
            folder=model_folder(w.variant),
            file=BUNDLE,
        ),
        contract=CONTRACT,
        queries=lambda w: expand(
            "results/{atlas}/data/queries/{batch}.h5ad",
            atlas=w.atlas,
            batch=query_batches(),
        ),
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/mapping/{{variant}}/joint/all/{file}",
            file=[*BUNDLE, *DENOISED],
        ),
        latent="results/{atlas}/seed{seed}/mapping/{variant}/joint/all/latent.h5ad",
        certificate="results/{atlas}/seed{seed}/mapping/{variant}/joint/all/certificate.json",
    log:
        "results/{atlas}/logs/seed{seed}/map_joint_{variant}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/map_joint_{variant}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("map_joint", 3000, 20),
        runtime=minutes("map_joint", 720),
        gpu=GPU,
        device=CONFIG.device,
        running=RUNNING,
    params:
        settings=settings_of(*SURGERY),
        bundle=lambda w, input: os.path.dirname(input.bundle[0]),
        out=subpath(output.latent, parent=True),
        probe=PROBE,
        numerics=NUMERICS["surgery"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " map-batches {input.queries:q} --reference_bundle {params.bundle:q}"
        " --out {params.out:q} --strategy joint --seed {wildcards.seed} {params.settings}"
        " {params.probe}"
        " --device {resources.device} {resources.running}"
