rule fetch:
    output:
        file="results/{atlas}/data/sources/{source}",
        facts="results/{atlas}/data/sources/{source}.json",
    log:
        "results/{atlas}/logs/fetch/{source}.log",
    benchmark:
        "results/{atlas}/logs/fetch/{source}.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("fetch", 4000),
        runtime=minutes("fetch", 240),
    params:
        source=lambda w: SOURCES[w.source].path,
        sha256=lambda w: SOURCES[w.source].sha256,
        simulation=lambda w: (
            as_flag("simulation", config.get("simulate") or {})
            if SOURCES[w.source].path == "builtin:simulated"
            else ""
        ),
        numerics=NUMERICS["data"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " fetch {params.source:q} --out {output.file:q} --sha256={params.sha256:q}"
        " {params.simulation}"


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
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("find_batches", 1000, 6),
        runtime=minutes("find_batches", 30),
    params:
        dataset=lambda w: shlex.quote(json.dumps(row(DATASETS[w.dataset]))),
        config=data_flag("min_cells_per_batch"),
        numerics=NUMERICS["data"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " find-batches {input:q} --dataset {params.dataset} {params.config}"
        " --out {output:q}"


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
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("prepare_query", 2000, 12),
        runtime=minutes("prepare_query", 60),
        checking=CHECKING,
    params:
        batch=lambda w: shlex.quote(unslug(w.batch)),
        dataset=lambda w: shlex.quote(
            json.dumps(row(owner(w.batch), "truth_key", "gene_lengths"))
        ),
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
        queries=lambda w: expand(
            "results/{atlas}/data/queries/{batch}.json",
            atlas=w.atlas,
            batch=query_batches(),
        ),
        tree=label_tree() if LABELLED else [],
    output:
        "results/{atlas}/data/contract.json",
    log:
        "results/{atlas}/logs/write_contract.log",
    benchmark:
        "results/{atlas}/logs/write_contract.tsv"
    conda:
        CONDA
    resources:
        attempt=this_attempt,
        mem_mb=memory("write_contract", 1000),
        runtime=minutes("write_contract", 10),
        # Where the config lies is no reason to run again: folders are moved.
        configfiles=repeated("configfiles", CONFIGFILES),
    params:
        tree=tree_flag,
        masked=as_is(repeated("masked", CONFIG.data.mask_proteins)),
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " write-contract {input.queries:q} --reference {input.reference:q}"
        " {resources.configfiles} {params.tree} {params.masked}"
        " --out {output:q}"
