# Beside a bundle: the map, the model card, and last a seal over all of its files.
rule complete_reference:
    input:
        bundle=bundle_in("seed{seed}/reference/{folder}", "reference_latent.h5ad"),
        counts=[] if TAKEN else "results/{atlas}/data/reference.h5ad",
        beside=beside_reference,
    output:
        cards_in("seed{seed}/reference/{folder}"),
        seal="results/{atlas}/seed{seed}/reference/{folder}/seal.json",
        umap="results/{atlas}/seed{seed}/reference/{folder}/umap.npz",
    log:
        "results/{atlas}/logs/seed{seed}/complete_reference_{folder}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/complete_reference_{folder}.tsv"
    wildcard_constraints:
        folder=one_of(MAPPED_ONTO),
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("complete_reference", 3000, 240, mb_per_mb=30),
    params:
        settings=settings_of("card", "umap"),
        bundle=folder_of("bundle"),
        counts=lambda w, input: repeated("counts", [input.counts] * (not TAKEN)),
        map=lambda w, output: repeated("map", [output.umap] if output.umap else []),
        numerics=[NUMERICS["card"], NUMERICS["umap"], NUMERICS["seal"]],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " complete-reference {params.bundle:q} {params.counts} {params.map}"
        " --seed {wildcards.seed} {params.settings}"


# No query is mapped onto these, so there is no map.
use rule complete_reference as complete_model with:
    output:
        cards_in("seed{seed}/reference/{folder}"),
        seal="results/{atlas}/seed{seed}/reference/{folder}/seal.json",
        umap=[],
    wildcard_constraints:
        folder=one_of(set(REFERENCE_FOLDERS) - set(MAPPED_ONTO)),


rule assemble:
    input:
        reference=reference_latent,
        umap=map_of_reference,
        mapped=lambda w: mapped(w.seed, w.variant, w.strategy),
        queries=queries,
        tree=label_tree(),
        denoised=denoised_reference,
        calibration=calibration_of,
        bundle=lambda w: reference_of(w) if CALIBRATED else [],
    output:
        in_mapping("atlas.h5ad"),
        labels=in_mapping("labels.csv", "soft_labels.parquet") if LABELLED else [],
        calibrated=(
            in_mapping("soft_labels_calibrated.parquet", "shifts.csv")
            if CALIBRATED
            else []
        ),
        opinions=OPINIONS,
    log:
        "results/{atlas}/logs/seed{seed}/assemble_{variant}_{strategy}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/assemble_{variant}_{strategy}.tsv"
    wildcard_constraints:
        strategy="per_batch|joint|frozen",
        variant=one_of(MODELS),
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("assemble", 3000, 360, mb_per_mb=10),
    params:
        settings=settings_of("transfer"),
        latents=lambda w: latents(w.seed, w.variant, w.strategy),
        queries=lambda w, input: repeated("queries", input.queries),
        trust=lambda w, input: beside_calibration(input.calibration),
        levels=as_is(repeated("levels", CONFIG.label_levels)),
        tree=tree_flag,
        opinions=opinion_flags,
        out=subpath(output[0], parent=True),
        numerics=NUMERICS["transfer"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " assemble {params.latents:q} --reference_latent {input.reference:q}"
        " --umap {input.umap:q} {params.queries} --out {params.out:q} {params.settings}"
        " {params.levels} {params.tree} {params.trust} {params.opinions}"


# On scVI's latent, where no label is transferred to it.
rule second_opinions:
    input:
        reference=reference_latent,
        mapped=lambda w: mapped(w.seed, w.variant, w.strategy),
        queries=queries,
    output:
        opinions=OPINIONS,
    log:
        "results/{atlas}/logs/seed{seed}/second_opinions_{variant}_{strategy}.log",
    benchmark:
        "results/{atlas}/logs/seed{seed}/second_opinions_{variant}_{strategy}.tsv"
    wildcard_constraints:
        variant="scvi",
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("second_opinions", 3000, 360, mb_per_mb=10),
    params:
        settings=settings_of("transfer"),
        latents=lambda w: latents(w.seed, w.variant, w.strategy),
        queries=lambda w, input: repeated("queries", input.queries),
        opinions=opinion_flags,
        numerics=NUMERICS["transfer"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " second-opinions {params.latents:q} --reference_latent {input.reference:q}"
        " {params.queries} {params.opinions} {params.settings}"


rule gene_gap:
    input:
        facts=query_facts,
        bundle=bundle_in(FINAL_REFERENCE, "reference_latent.h5ad"),
        reference="results/{atlas}/data/reference.h5ad",
    output:
        "results/{atlas}/benchmark/gene_gap.csv",
    log:
        "results/{atlas}/logs/gene_gap.log",
    benchmark:
        "results/{atlas}/logs/gene_gap.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("gene_gap", 2000, 60, mb_per_mb=6),
    params:
        bundle=folder_of("bundle"),
        numerics=NUMERICS["classification"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " gene-gap {input.facts:q} --bundle {params.bundle:q}"
        " --reference {input.reference:q} --out {output:q}"


rule publish:
    input:
        of_final("atlas.h5ad", "labels.csv") if LABELLED else of_final("atlas.h5ad"),
        seeds=labels_of_seeds(),
    output:
        "results/{atlas}/atlas.h5ad",
        "results/{atlas}/labels.csv" if LABELLED else [],
    log:
        "results/{atlas}/logs/publish.log",
    benchmark:
        "results/{atlas}/logs/publish.tsv"
    localrule: True
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("publish", 500, 30, mb_per_mb=4),
    params:
        final=subpath(input[0], parent=True),
        seeds=lambda w, input: repeated("seeds", input.seeds),
        out=subpath(output[0], parent=True),
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " publish {params.final:q} --out {params.out:q} {params.seeds}"
