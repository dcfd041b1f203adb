# How far labels are to be trusted: batches are held out in turn from the reference, models are
# trained on the others, and they are mapped onto these, thinned to library sizes that queries may
# have. (scheme: validation asks the reference's own cells.)


# All models of a fold, one after the other.
rule train_held_out:
    input:
        reference="results/{atlas}/data/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
    output:
        held_out_files("seed{seed}/held_out/{fold}"),
    log:
        "results/{atlas}/logs/seed{seed}/train_held_out/{fold}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/train_held_out/{fold}.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("train_held_out", 3000, 1440, mb_per_mb=20, gpu=True, streams=True),
    params:
        models=as_is(held_out_models()),
        settings=settings_of("totalvi" if CITESEQ else "scvi", SURGERY[0]),
        calibration=block_flag("calibration", "folds", "n_draws"),
        out=subpath(output[0], ancestor=2),
        strategy=HELD_OUT_STRATEGY,
        numerics=[NUMERICS[name] for name in HELD_OUT_NUMERICS],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " train-held-out {input.reference:q} --contract {input.contract:q} --out {params.out:q}"
        " --fold {wildcards.fold} --seed {wildcards.seed} --strategy {params.strategy}"
        " {params.models} {params.settings} {params.calibration}"
        " --device {resources.device} {resources.running}"


rule calibrate:
    input:
        held_out=lambda w: [run[key] for run in held_out_runs(w) for key in OF_FOLD],
        reference="results/{atlas}/data/reference.h5ad",
        contract=ancient("results/{atlas}/data/contract.json"),
        tree=label_tree(),
        bundle=bundle_in("seed{seed}/reference/{folder}", "reference_latent.h5ad"),
    output:
        learned="results/{atlas}/seed{seed}/reference/{folder}/calibration.json",
        profiles="results/{atlas}/seed{seed}/reference/{folder}/profiles.npz",
    log:
        "results/{atlas}/logs/seed{seed}/calibrate_{folder}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/calibrate_{folder}.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("calibrate", 2000, 60, mb_per_mb=6, minutes_per_input=2),
    params:
        bundle=folder_of("bundle"),
        held_out=lambda w: repeated(
            "held_out", map(json.dumps, placed_runs(held_out_runs(w)))
        ),
        settings=block_flag("calibration", *OF_CALIBRATION),
        tree=tree_flag,
        numerics=NUMERICS["calibration"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " calibrate {input.reference:q} --bundle {params.bundle:q} {params.held_out}"
        " --contract {input.contract:q} --out {output.learned:q}"
        " {params.settings} {params.tree}"
