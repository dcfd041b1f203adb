# How far labels are to be trusted: a twin of the reference is trained without some batches, which
# are then mapped onto it as queries are. (scheme: validation asks the reference's own cells.)


rule hold_out:
    input:
        reference="results/{atlas}/data/reference.h5ad",
    output:
        twin="results/{atlas}/data/held_out/reference.h5ad",
        held_out="results/{atlas}/data/held_out/query.h5ad",
    log:
        "results/{atlas}/logs/hold_out.log",
    benchmark:
        "results/{atlas}/logs/hold_out.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        attempt=this_attempt,
        mem_mb=memory("hold_out", 1500, 6),
        runtime=minutes("hold_out", 30),
        memory=MEMORY,
    params:
        settings=calibration_flag("share"),
        numerics=NUMERICS["hold_out"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " hold-out {input.reference:q} --twin {output.twin:q} --held_out {output.held_out:q}"
        " {params.settings} {resources.memory}"


use rule train_scvi as train_twin_scvi with:
    input:
        reference="results/{atlas}/data/held_out/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
    output:
        expand("results/{{atlas}}/seed{{seed}}/held_out/scvi/{file}", file=BUNDLE),
        latent="results/{atlas}/seed{seed}/held_out/scvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_twin_scvi.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_twin_scvi.tsv"


use rule train_scanvi as train_twin_scanvi with:
    input:
        reference="results/{atlas}/data/held_out/reference.h5ad",
        scvi=expand("results/{{atlas}}/seed{{seed}}/held_out/scvi/{file}", file=BUNDLE),
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/held_out/scanvi_{{variant}}/{file}",
            file=BUNDLE,
        ),
        latent="results/{atlas}/seed{seed}/held_out/scanvi_{variant}/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_twin_scanvi_{variant}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_twin_scanvi_{variant}.tsv"


use rule train_totalvi as train_twin_totalvi with:
    input:
        reference="results/{atlas}/data/held_out/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
    output:
        expand(
            "results/{{atlas}}/seed{{seed}}/held_out/totalvi/{file}",
            file=BUNDLE,
        ),
        latent="results/{atlas}/seed{seed}/held_out/totalvi/reference_latent.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/train_twin_totalvi.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_twin_totalvi.tsv"


rule map_held_out:
    input:
        held_out="results/{atlas}/data/held_out/query.h5ad",
        bundle=expand(
            "results/{{atlas}}/seed{{seed}}/held_out/{{folder}}/{file}",
            file=[*BUNDLE, "reference_latent.h5ad"],
        ),
    output:
        "results/{atlas}/seed{seed}/held_out/{folder}/mapped.h5ad",
    log:
        "results/{atlas}/logs/seed{seed}/map_held_out_{folder}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/map_held_out_{folder}.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        attempt=this_attempt,
        mem_mb=memory("map_held_out", 3000, 20),
        runtime=minutes("map_held_out", 360),
        gpu=GPU,
        device=CONFIG.device,
        running=RUNNING,
    params:
        settings=settings_of(SURGERY[0]),
        bundle=subpath(output[0], parent=True),
        strategy=HELD_OUT_STRATEGY,
        numerics=NUMERICS["surgery"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " map-held-out {input.held_out:q} --reference_bundle {params.bundle:q} --out {output:q}"
        " --strategy {params.strategy} --seed {wildcards.seed} {params.settings}"
        " --device {resources.device} {resources.running}"


rule calibrate:
    input:
        bundle=lambda w: expand(
            "results/{atlas}/seed{seed}/{part}/{folder}/{file}",
            atlas=w.atlas,
            seed=w.seed,
            part=HELD_OUT,
            folder=w.folder,
            file=[*BUNDLE, "reference_latent.h5ad"],
        ),
        held_out=(
            "results/{atlas}/seed{seed}/held_out/{folder}/mapped.h5ad"
            if HELD_OUT == "held_out"
            else []
        ),
    output:
        "results/{atlas}/seed{seed}/reference/{folder}/calibration.json",
    log:
        "results/{atlas}/logs/seed{seed}/calibrate_{folder}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/calibrate_{folder}.tsv"
    conda:
        CONDA
    threads: 1
    resources:
        attempt=this_attempt,
        mem_mb=memory("calibrate", 2000, 6),
        runtime=minutes("calibrate", 60),
    params:
        bundle=lambda w, input: os.path.dirname(input.bundle[0]),
        held_out=lambda w, input: (
            f"--held_out={shlex.quote(input.held_out)}" if input.held_out else ""
        ),
        settings=calibration_flag(
            "method",
            "n_draws",
            "coverage",
            "min_cells",
            "min_cells_per_label",
            "false_novel",
        ),
        numerics=NUMERICS["calibration"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " calibrate --bundle {params.bundle:q} {params.held_out} --out {output:q}"
        " {params.settings}"
