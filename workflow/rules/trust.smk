# How far labels are to be trusted: batches are held out in turn from a twin of the reference, thinned
# to depths that queries may have, and mapped as these are. (scheme: validation asks the reference's own
# cells.)


rule hold_out:
    input:
        reference="results/{atlas}/data/reference.h5ad",
    output:
        twin="results/{atlas}/data/held_out/{fold}/reference.h5ad",
        held_out="results/{atlas}/data/held_out/{fold}/query.h5ad",
    log:
        "results/{atlas}/logs/hold_out/{fold}.log",
    benchmark:
        "results/{atlas}/logs/hold_out/{fold}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("hold_out", 1500, 6),
        runtime=minutes("hold_out", 30),
        memory=MEMORY,
    params:
        settings=block_flag("calibration", "folds"),
        numerics=NUMERICS["hold_out"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " hold-out {input.reference:q} --twin {output.twin:q} --held_out {output.held_out:q}"
        " --fold {wildcards.fold} {params.settings} {resources.memory}"


use rule train_scvi as train_twin_scvi with:
    input:
        reference="results/{atlas}/data/held_out/{fold}/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/held_out/{{fold}}/scvi/{file}", file=BUNDLE
        ),
        latent="results/{atlas}/seed{seed}/held_out/{fold}/scvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_twin_scvi/{fold}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_twin_scvi/{fold}.tsv"


use rule train_scanvi as train_twin_scanvi with:
    input:
        reference="results/{atlas}/data/held_out/{fold}/reference.h5ad",
        scvi=expand(
            "results/{{atlas}}/seed{{seed}}/held_out/{{fold}}/scvi/{file}", file=BUNDLE
        ),
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/held_out/{{fold}}/scanvi_{{variant}}/{file}",
            file=BUNDLE,
        ),
        latent="results/{atlas}/seed{seed}/held_out/{fold}/scanvi_{variant}/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_twin_scanvi_{variant}/{fold}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_twin_scanvi_{variant}/{fold}.tsv"


use rule train_totalvi as train_twin_totalvi with:
    input:
        reference="results/{atlas}/data/held_out/{fold}/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/held_out/{{fold}}/totalvi/{file}",
            file=BUNDLE,
        ),
        latent="results/{atlas}/seed{seed}/held_out/{fold}/totalvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_twin_totalvi/{fold}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_twin_totalvi/{fold}.tsv"


rule map_held_out:
    input:
        held_out="results/{atlas}/data/held_out/{fold}/query.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
        bundle=expand(
            "results/{{atlas}}/seed{{seed}}/held_out/{{fold}}/{{folder}}/{file}",
            file=[*BUNDLE, "reference_latent.h5ad"],
        ),
    output:
        "results/{atlas}/seed{seed}/held_out/{fold}/{folder}/mapped.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/map_held_out_{folder}/{fold}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/map_held_out_{folder}/{fold}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("map_held_out", 3000, 20),
        runtime=minutes("map_held_out", 360),
        gpu=GPU,
        device=CONFIG.device,
        running=RUNNING,
    params:
        settings=settings_of(SURGERY[0]),
        draws=block_flag("calibration", "n_draws"),
        bundle=subpath(output[0], parent=True),
        strategy=HELD_OUT_STRATEGY,
        numerics=NUMERICS["surgery"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " map-held-out {input.held_out:q} --reference_bundle {params.bundle:q} --out {output:q}"
        " --contract {input.contract:q} --strategy {params.strategy} --seed {wildcards.seed}"
        " {params.settings} {params.draws}"
        " --device {resources.device} {resources.running}"


rule calibrate:
    input:
        held_out=lambda w: [
            path
            for run in held_out_runs(w)
            for key, path in run.items()
            if key != "fold"
        ],
        reference="results/{atlas}/data/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
        tree=label_tree(),
        bundle=expand(
            "results/{{atlas}}/seed{{seed}}/reference/{{folder}}/{file}",
            file=[*BUNDLE, "reference_latent.h5ad"],
        ),
    output:
        learned="results/{atlas}/seed{seed}/reference/{folder}/calibration.json",
        profiles="results/{atlas}/seed{seed}/reference/{folder}/profiles.npz",
    log:
        "results/{atlas}/logs/seed{seed}/calibrate_{folder}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/calibrate_{folder}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("calibrate", 2000, 6),
        runtime=minutes("calibrate", 60, 2),
    params:
        bundle=lambda w, input: os.path.dirname(input.bundle[0]),
        held_out=lambda w: repeated("held_out", map(json.dumps, held_out_runs(w))),
        settings=block_flag(
            "calibration",
            "n_draws",
            "risk",
            "coverage",
            "false_novel",
            "min_cells",
            "min_cells_per_label",
        ),
        tree=tree_flag,
        numerics=NUMERICS["calibration"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " calibrate {input.reference:q} --bundle {params.bundle:q} {params.held_out} {params.tree}"
        " --contract {input.contract:q} --out {output.learned:q} {params.settings}"
