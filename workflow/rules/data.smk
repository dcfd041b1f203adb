rule fetch:
    output:
        file="results/{atlas}/data/sources/{source}",
        facts="results/{atlas}/data/sources/{source}.json",
    log:
        "results/{atlas}/logs/fetch/{source}.log",
    benchmark:
        "results/{atlas}/logs/fetch/{source}.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("fetch", 4000, 240),
    params:
        source=fetch_flags,
        numerics=NUMERICS["data"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " fetch {params.source} --out {output.file:q}"


checkpoint find_batches:
    input:
        lambda w: source_path(DATASETS[w.dataset]),
    output:
        "results/{atlas}/data/batches/{dataset}.json",
    log:
        "results/{atlas}/logs/find_batches/{dataset}.log",
    benchmark:
        "results/{atlas}/logs/find_batches/{dataset}.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("find_batches", 1000, 30, mb_per_mb=6),
    params:
        dataset=lambda w: quoted(row(DATASETS[w.dataset])),
        config=data_flag("min_cells_per_batch"),
        numerics=NUMERICS["data"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " find-batches {input:q} --dataset {params.dataset} {params.config} --out {output:q}"


rule prepare_query:
    input:
        file=lambda w: source_path(owner(w.batch)),
        lengths=lambda w: gene_lengths([owner(w.batch)]),
        reference=prepared_reference(),
    output:
        query="results/{atlas}/data/queries/{batch}.h5ad",
        facts="results/{atlas}/data/queries/{batch}.json",
    log:
        "results/{atlas}/logs/prepare_query/{batch}.log",
    benchmark:
        "results/{atlas}/logs/prepare_query/{batch}.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("prepare_query", 2000, 60, mb_per_mb=12, streams=True),
        checking=CHECKING,
    params:
        batch=lambda w: shlex.quote(unslug(w.batch)),
        dataset=lambda w: quoted(row(owner(w.batch), "truth_key", "gene_lengths")),
        config=data_flag("min_gene_overlap", "min_cells_per_batch", "mask_proteins"),
        numerics=NUMERICS["data"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " prepare-query {input.file:q} --dataset {params.dataset} --batch={params.batch}"
        " --reference {input.reference:q} {params.config} {resources.checking}"
        " --out {output.query:q} --facts {output.facts:q}"


checkpoint write_contract:
    input:
        reference="results/{atlas}/data/reference.json",
        queries=query_facts,
        tree=label_tree() if LABELLED else [],
    output:
        "results/{atlas}/data/contract.json",
    log:
        "results/{atlas}/logs/write_contract.log",
    benchmark:
        "results/{atlas}/logs/write_contract.tsv"
    localrule: True
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("write_contract", 1000, 10),
        # Where the config lies is no reason to run again: folders are moved.
        configfiles=repeated("configfiles", CONFIGFILES),
    params:
        tree=tree_flag,
        masked=as_is(repeated("masked", CONFIG.data.mask_proteins)),
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " write-contract {input.queries:q} --reference {input.reference:q}"
        " {resources.configfiles} {params.tree} {params.masked} --out {output:q}"
