rule write_explorer:
    input:
        atlas="results/{atlas}/atlas.h5ad",
        counts=all_counts,
    output:
        report(
            "results/{atlas}/explorer.html",
            caption="../report/explorer.rst",
            category="Atlas",
            labels={"figure": "Atlas explorer"},
        ),
    log:
        "results/{atlas}/logs/write_explorer.log",
    benchmark:
        "results/{atlas}/logs/write_explorer.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("write_explorer", 2000, 30, mb_per_mb=10),
    params:
        counts=lambda w, input: repeated("counts", input.counts),
        settings=settings_of("explorer"),
        numerics=NUMERICS["pages"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " write-explorer {input.atlas:q} {params.counts} --out {output:q}"
        " --title={wildcards.atlas:q} {params.settings}"


rule write_report:
    input:
        reported,
    output:
        "results/{atlas}/report.html",
    log:
        "results/{atlas}/logs/write_report.log",
    benchmark:
        "results/{atlas}/logs/write_report.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("write_report", 1500, 10, mb_per_mb=2),
        # Where the checkout is, and keys that no result depends on, are no reason to make a page
        # again, as parameters would be.
        captions=captions(),
        given=json.dumps(config),
    params:
        folder=subpath(output[0], parent=True),
        final=f"--variant={FINAL_MODEL} --strategy={FINAL.strategy} --seed={FINAL.seed}",
        numerics=NUMERICS["pages"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " write-report {params.folder:q} --out {output:q} {params.final}"
        " --captions={resources.captions:q} --config={resources.given:q}"
