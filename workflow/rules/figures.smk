rule plot_figures:
    input:
        tables=tables_drawn(),
        atlases=[path for *_, path in mappings([FINAL.seed])],
    output:
        [
            report(
                f"results/{{atlas}}/figures/{name}.svg",
                caption=f"../report/{name.split('_query')[0].split('_validation')[0]}.rst",
                category=category,
                labels={"figure": title},
            )
            for name, (category, title, _) in FIGURES.items()
        ],
        expand("results/{{atlas}}/figures/{name}.png", name=FIGURES),
    log:
        "results/{atlas}/logs/plot_figures.log",
    benchmark:
        "results/{atlas}/logs/plot_figures.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("plot_figures", 2000, 30, mb_per_mb=4),
    params:
        runs=drawn_runs(),
        figures=repeated("figures", FIGURES),
        final=drawn_final(),
        tables=placed(f"{TOP}/benchmark"),
        out=subpath(output[0], parent=True),
        numerics=NUMERICS["figures"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " plot-figures {params.tables:q} {params.figures} {params.runs} {params.final}"
        " --out {params.out:q}"


rule plot_proteins:
    input:
        atlas=of_final("atlas.h5ad"),
        reference=f"results/{{atlas}}/seed{FINAL.seed}/reference/{FINAL_MODEL}/denoised.h5ad",
        mapped=lambda w: mapped(FINAL.seed, FINAL_MODEL, FINAL.strategy),
    output:
        [
            report(
                f"results/{{atlas}}/figures/protein_{name}.svg",
                caption="../report/proteins.rst",
                category="Proteins",
                labels={"figure": f"Proteins, {name}"},
            )
            for name in ("ridges", "dots")
        ],
        [f"results/{{atlas}}/figures/protein_{name}.png" for name in ("ridges", "dots")],
    log:
        "results/{atlas}/logs/plot_proteins.log",
    benchmark:
        "results/{atlas}/logs/plot_proteins.tsv"
    conda:
        "../../envs/atlasmap.yaml"
    resources:
        **needs("plot_proteins", 2000, 20, mb_per_mb=4),
    params:
        denoised=lambda w: latents(
            FINAL.seed, FINAL_MODEL, FINAL.strategy, "denoised.h5ad"
        ),
        out=subpath(output[0], parent=True),
        numerics=NUMERICS["figures"],
    shell:
        "atlasmap --log {log:q} --attempt {resources.attempt}"
        " plot-proteins {input.reference:q} {params.denoised:q} --atlas {input.atlas:q}"
        " --out {params.out:q}"
