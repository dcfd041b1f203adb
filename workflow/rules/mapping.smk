rule map_per_batch:
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
            "results/{{atlas}}/seed{{seed}}/mapping/{{variant}}/per_batch/{{batch}}/{file}",
            file=BUNDLE,
        ),
        latent="results/{atlas}/seed{seed}/mapping/{variant}/per_batch/{batch}/latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/map_{variant}_per_batch/{batch}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/map_{variant}_per_batch/{batch}.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=memory(3000, 20),
        runtime=minutes(120),
        gpu=GPU,
        device=CONFIG.device,
    params:
        settings=settings_of("surgery"),
        bundle=lambda w, input: os.path.dirname(input.bundle[0]),
        out=subpath(output.latent, parent=True),
        numerics=NUMERICS["surgery"],
    shell:
        "atlasmap operate {input.query:q} --reference_bundle {params.bundle:q}"
        " --out {params.out:q} --strategy per_batch --seed {wildcards.seed} {params.settings}"
        " --device {resources.device} > {log:q} 2>&1"


rule map_joint:
    input:
        bundle=lambda w: expand(
            "results/{atlas}/seed{seed}/reference/{folder}/{file}",
            atlas=w.atlas,
            seed=w.seed,
            folder=model_folder(w.variant),
            file=BUNDLE,
        ),
        queries=lambda w: expand(
            "results/{atlas}/data/queries/{batch}.h5ad",
            atlas=w.atlas,
            batch=query_batches(),
        ),
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/mapping/{{variant}}/joint/all/{file}",
            file=BUNDLE,
        ),
        latent="results/{atlas}/seed{seed}/mapping/{variant}/joint/all/latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/map_{variant}_joint.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/map_{variant}_joint.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        mem_mb=memory(3000, 20),
        runtime=minutes(720),
        gpu=GPU,
        device=CONFIG.device,
    params:
        settings=settings_of("surgery"),
        bundle=lambda w, input: os.path.dirname(input.bundle[0]),
        out=subpath(output.latent, parent=True),
        numerics=NUMERICS["surgery"],
    shell:
        "atlasmap operate {input.queries:q} --reference_bundle {params.bundle:q}"
        " --out {params.out:q} --strategy joint --seed {wildcards.seed} {params.settings}"
        " --device {resources.device} > {log:q} 2>&1"
