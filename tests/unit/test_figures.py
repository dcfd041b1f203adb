"""Figures: what they show, drawn from small tables."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import anndata
import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from scipy.stats import binomtest

from atlasmap.commands import figures
from atlasmap.evaluation.scib import AGGREGATES, BATCH, BIO
from atlasmap.figures.confusion import draw_confusion
from atlasmap.figures.embeddings import draw_embeddings
from atlasmap.figures.loss_curves import draw_loss_curves
from atlasmap.figures.proteins import draw_dots, draw_ridges
from atlasmap.figures.reliability import draw_reliability
from atlasmap.figures.risk_coverage import draw_risk_coverage
from atlasmap.figures.scib_table import draw_scib_table, embedding_name
from atlasmap.figures.shifts import draw_shifts
from atlasmap.figures.style import one_kind, save
from atlasmap.files import read_table
from atlasmap.labels.palette import GREY, PALETTE, colors_of

VARIANTS = ("prefix", "fixed", "linear")
KIND = {"method": "classifier", "probabilities": "raw", "level": "label"}


def words(figure) -> str:
    """All text of a figure but tick labels."""
    found = list(figure.texts)
    for ax in figure.axes:
        found += [*ax.texts, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]
    for legend in figure.legends:
        found += [legend.get_title(), *legend.get_texts()]
    return "\n".join(text.get_text() for text in found)


HISTORY = ["seed", "model", "variant", "strategy", "epoch", "split", "metric", "value"]


def history(variants=VARIANTS, seeds=(0, 1)) -> pd.DataFrame:
    """Values that differ by seed, epoch, split and variant; the second seed is shorter."""
    rows = [
        (seed, "scanvi", variant, strategy, epoch, split, metric, value)
        for seed in seeds
        for variant in variants
        for strategy in ("", "joint")  # which is not drawn
        for epoch in range(5 - seed)
        for split in ("train", "validation")
        for metric in ("classification_loss", "calibration_error", "accuracy", "elbo")
        for value in [10 * seed + epoch + (split == "train") + 5 * (variant == "linear")]
    ]
    return pd.DataFrame(rows, columns=HISTORY)


def confusion(batches=("b1", "b2"), variants=("fixed", "prefix")) -> pd.DataFrame:
    """T and B cells, and in the query a label Z that the reference lacks."""
    rows = []
    for seed in (0, 1):
        for variant in variants:
            key = (seed, variant, "", "all")
            rows += [(*key, "train", "T", "T", 9), (*key, "train", "B", "B", 9)]
            rows += [(*key, "train", "rare", "rare", 3)]
            rows += [
                (*key, "validation", "T", "T", 6),
                (*key, "validation", "T", "B", 2 + 4 * seed),
            ]
            for strategy in ("per_batch", "joint"):
                for batch in ("all", *batches):
                    key = (seed, variant, strategy, batch, "query")
                    rows += [(*key, "T", "T", 4), (*key, "B", "T", 1), (*key, "Z", "B", 5)]
    columns = ["seed", "variant", "strategy", "batch", "split", "truth", "predicted", "n"]
    table = pd.DataFrame(rows, columns=columns).assign(**KIND)
    other = table.assign(method="knn", predicted="T", n=1000)
    return pd.concat([table, other], ignore_index=True)


def cells(names=("B", "T", "Unknown"), n=40) -> pd.DataFrame:
    """Cells on a map, three quarters of them of the reference."""
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "y": rng.normal(size=n),
            "name": [names[i % len(names)] for i in range(n)],
            "batch": [f"batch{i % 3}" for i in range(n)],
            "role": ["query" if i % 4 == 0 else "reference" for i in range(n)],
        }
    )


def scib(seeds=(0, 1), labels=True) -> pd.DataFrame:
    """PCA is better than scANVI; without `labels` most of the atlas's metrics are skipped."""
    rows = []
    for seed in seeds:
        for where, embedding, model, value in [
            ("reference", "scanvi_fixed", ("scanvi", "fixed", ""), 0.4 + 0.2 * seed),
            ("reference", "pca", ("", "", ""), 0.8),
            ("atlas", "scanvi_fixed_per_batch", ("scanvi", "fixed", "per_batch"), 0.3),
        ]:
            row = {"seed": seed, "embedding": embedding, "cells": where, "n": 1200}
            row |= dict(zip(("model", "variant", "strategy"), model, strict=True))
            row |= dict.fromkeys((*BIO, *BATCH, *AGGREGATES), value)
            if where == "atlas" and not labels:
                row |= dict.fromkeys(BIO, "skipped(no labels)")
                row |= {"total": "skipped(bio or batch missing)"}
            rows.append(row | {"scib_metrics": "0.5.10"})
    return pd.DataFrame(rows)


def reliability() -> pd.DataFrame:
    """Two bins of as many cells: 20 of each seed, and 100; their histogram."""
    rows = [
        (seed, variant, strategy, batch, split, bins, bin_, confidence, accuracy, n)
        for variant in ("fixed", "linear")
        for strategy, split in (("", "validation"), ("per_batch", "query"), ("joint", "query"))
        for batch in ("all", "b1")
        for seed, bins, bin_, confidence, accuracy, n in [
            (0, "count", 0, 0.5, 1.0, 10),
            (1, "count", 0, 0.52, 0.2, 30),
            (0, "count", 1, 0.96, 0.9, 100),
            (1, "count", 1, 0.98, 0.9, 100),
            (0, "width", 7, 0.5, 1.0, 40),
            (0, "width", 14, 0.97, 0.9, 200),
        ]
    ]
    columns = ["seed", "variant", "strategy", "batch", "split", "bins", "bin", "confidence"]
    table = pd.DataFrame(rows, columns=[*columns, "accuracy", "n"])
    return table.assign(**KIND)


def test_loss_curves_grid_shares_scales():
    figure = draw_loss_curves(history())
    assert len(figure.axes) == 9
    assert [ax.get_title() for ax in figure.axes[:3]] == [f"scANVI {name}" for name in VARIANTS]
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == [
        "Classification loss",
        "Calibration error",
        "Accuracy",
    ]
    for row in range(3):
        assert len({ax.get_ylim() for ax in figure.axes[3 * row : 3 * row + 3]}) == 1
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["train (mean of 2 seeds)", "validation (mean of 2 seeds)"]


def test_loss_curves_lines_are_seeds_and_their_mean():
    lines = draw_loss_curves(history(("fixed",))).axes[0].lines
    assert len(lines) == 6
    validation = lines[3:]
    assert [len(line.get_xdata()) for line in validation] == [5, 4, 4]
    np.testing.assert_allclose(validation[2].get_ydata(), [5, 6, 7, 8])
    assert validation[2].get_linewidth() > validation[0].get_linewidth()
    one = draw_loss_curves(history(("fixed",)), seed=1).axes[0].lines
    np.testing.assert_allclose(one[1].get_ydata(), [10, 11, 12, 13])


def test_loss_curves_of_a_subset_or_of_nothing():
    assert len(draw_loss_curves(history(("linear",))).axes) == 3
    assert "of seed 7 holds no scANVI variant" in words(draw_loss_curves(history(), seed=7))
    assert "no training history" in words(draw_loss_curves(pd.DataFrame()))


def shares(ax) -> np.ndarray:
    """The matrix a panel shows."""
    return np.ma.filled(ax.images[0].get_array(), np.nan)


def test_confusion_of_validation_is_row_normalised_over_seeds():
    figure = draw_confusion(confusion(), "validation")
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title().split("\n")[0] for ax in panels] == ["prefix", "fixed"]
    # Rows: only T was held out; columns: all labels of the reference.
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["T"]
    assert [tick.get_text() for tick in panels[0].get_xticklabels()] == ["B", "rare", "T"]
    np.testing.assert_allclose(shares(panels[0]), [[8 / 20, 0, 12 / 20]])
    assert panels[0].images[0].get_clim() == (0, 1)
    assert "validation, 10 cells" in panels[0].get_title()
    assert {text.get_text() for text in panels[0].texts} == {"4", "6"}


def test_confusion_of_query_is_variants_by_batches():
    figure = draw_confusion(confusion(), "query")
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 4 * 2
    assert panels[1].get_title() == "prefix, per batch\nb2, 10 cells"
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["B", "T", "Z †"]
    assert "† The model was trained on no cell with this label." in words(figure)
    for ax in panels:
        np.testing.assert_allclose(shares(ax).sum(axis=1), 1)
    labelled = [ax.yaxis.get_tick_params()["labelleft"] for ax in panels]
    assert labelled == [True, False] * 4
    assert [ax.xaxis.get_tick_params()["labelbottom"] for ax in panels] == [False] * 6 + [True] * 2


def test_confusion_of_many_batches_is_of_all_of_them():
    figure = draw_confusion(confusion([f"b{i}" for i in range(7)]), "query")
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 4
    assert panels[1].get_title() == "prefix, joint\nall batches, 10 cells"
    # Strategies side by side, variants below each other.
    tops = [round(ax.get_position().y1, 6) for ax in panels]
    assert tops[0] == tops[1] > tops[2] == tops[3]


def test_confusion_titles_of_long_batch_names_fit():
    batches = ["a batch name far longer than a panel", "another batch name of that length"]
    figure = draw_confusion(confusion(batches), "query")
    left, right = (ax.title.get_window_extent() for ax in figure.axes[:2])
    assert left.x1 < right.x0
    assert "a ba" in figure.axes[0].get_title() and "…" in figure.axes[0].get_title()


def test_confusion_without_truth_says_so():
    only = confusion()
    assert "No query cell" in words(draw_confusion(only[only["split"] != "query"], "query"))
    assert "No cell has a known label" in words(draw_confusion(pd.DataFrame(), "query"))


def test_embeddings_draw_rows_of_label_batch_role():
    figure = draw_embeddings({"fixed, per batch": cells(), "linear, joint": cells()})
    assert len(figure.axes) == 6
    assert [ax.get_title() for ax in figure.axes[:3]] == ["Label", "Batch", "Role"]
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["fixed, per batch", "linear, joint"]
    entries = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    batches = ["batch0", "batch1", "batch2"]
    assert entries == [["B", "T", "Unknown"], batches, ["reference", "query"]]
    for ax in figure.axes:
        assert ax.collections[0].get_rasterized() and ax.get_aspect() == 1
        assert not len(ax.get_xticks())


def test_without_any_label_there_is_no_panel_of_labels():
    figure = draw_embeddings({"a": cells(names=("Unknown",))})
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["Batch", "Role"]


def test_embeddings_draw_query_last_and_grey_first():
    table = cells()
    by_label, _, by_role = (ax.collections[0] for ax in draw_embeddings({"one": table}).axes)
    is_grey = (by_label.get_facecolor() == to_rgba(GREY)).all(axis=1)
    n = (table["name"] == "Unknown").sum()
    assert is_grey[:n].all() and not is_grey[n:].any()
    last = by_role.get_offsets()[-10:]
    query = table.loc[table["role"] == "query", ["x", "y"]].to_numpy()
    np.testing.assert_allclose(sorted(last[:, 0]), sorted(query[:, 0]))


def test_embeddings_of_60_labels_are_numbered_and_fit():
    names = [f"a rather long cell type name {i:02d}" for i in range(60)]
    figure = draw_embeddings({"one": cells(names, 240)})
    assert len(figure.axes[0].texts) == 60
    legend = figure.legends[0]
    assert legend.get_texts()[59].get_text() == f"60  {names[59]}"
    assert legend._ncols > 1
    # Else legends move when a figure is written with tight edges.
    assert legend.get_bbox_to_anchor()._transform is figure.transFigure
    width, height = figure.bbox.size
    panels = [ax.get_window_extent() for ax in figure.axes]
    boxes = [legend.get_window_extent() for legend in figure.legends]
    for i, box in enumerate(boxes):
        assert box.x1 <= width and box.y0 >= 0 and box.y1 <= height
        assert not any(box.overlaps(other) for other in [*panels, *boxes[i + 1 :]])


def test_colors_of_60_names_differ():
    assert len(set(colors_of([str(i) for i in range(60)]).values())) == 60
    assert GREY not in PALETTE


def test_scib_table_is_sorted_by_total_with_spread():
    figure = draw_scib_table(scib())
    text = words(figure)
    assert text.index("PCA") < text.index("scANVI fixed\n") < text.index("scANVI fixed, per batch")
    assert "Reference cells (1,200 cells)" in text
    assert "Reference and query cells (1,200 cells)" in text
    assert {"Bio conservation", "Batch correction", "Aggregate score"} <= set(text.split("\n"))
    assert "0.50 ± 0.14" in text and "Mean of 2 seeds" in text and "scib-metrics 0.5.10" in text
    assert "±" not in words(draw_scib_table(scib(seeds=(0,))))


def test_scib_table_shows_what_was_skipped():
    figure = draw_scib_table(scib(labels=False))
    lines = words(figure).split("\n")
    assert lines.count("–") == len(BIO) + 1
    metrics = "Isolated labels, KMeans NMI, KMeans ARI, Silhouette label, cLISI"
    assert f"– no labels: {metrics} (reference and query cells)" in lines
    assert "– bio or batch missing: Total (reference and query cells)" in lines
    assert not [line for line in words(draw_scib_table(scib())).split("\n") if line[:1] == "–"]
    assert "no scib-metrics table" in words(draw_scib_table(pd.DataFrame()))


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (("pca", "", "", ""), "PCA"),
        (("scvi_joint", "scvi", "", "joint"), "scVI, joint"),
        (("a", "scanvi", "prefix", "per_batch"), "scANVI prefix, per batch"),
        (("harmony_2", "", "", ""), "harmony_2"),
    ],
)
def test_embedding_name(row, shown):
    columns = ("embedding", "model", "variant", "strategy")
    assert embedding_name(pd.Series(dict(zip(columns, row, strict=True)))) == shown


def test_reliability_pools_seeds_and_batches():
    figure = draw_reliability(reliability())
    assert len(figure.axes) == 4
    assert [ax.get_title() for ax in figure.axes[::2]] == ["fixed", "linear"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["validation", "query, per batch", "query, joint"]
    diagonal, *curves = figure.axes[0].lines
    np.testing.assert_allclose(diagonal.get_xdata(), diagonal.get_ydata())
    assert len(curves) == 3
    np.testing.assert_allclose(curves[0].get_xdata(), [0.515, 0.97])
    np.testing.assert_allclose(curves[0].get_ydata(), [0.4, 0.9])
    share = figure.axes[1].patches[0].get_data().values
    assert share[7] == pytest.approx(40 / 240) and share[14] == pytest.approx(200 / 240)
    intervals = figure.axes[0].collections[0].get_segments()
    expected = binomtest(16, 40).proportion_ci(method="wilson")
    assert np.allclose(intervals[0], [[0.515, expected.low], [0.515, expected.high]])
    assert "no reliability to draw" in words(draw_reliability(reliability().query("batch == 'b1'")))


def risk_coverage() -> pd.DataFrame:
    """Two seeds, of which one is right and one wrong once all cells are kept."""
    rows = [
        (seed, "fixed", strategy, "all", split, kind, coverage, accuracy)
        for seed, last in ((0, 1.0), (1, 0.6))
        for strategy, split in (("", "validation"), ("per_batch", "query"))
        for kind, less in (("raw", 0.1), ("calibrated", 0))
        for coverage, accuracy in ((0.5, 1 - less), (1.0, last))
    ]
    columns = ["seed", "variant", "strategy", "batch", "split", "probabilities", "coverage"]
    table = pd.DataFrame(rows, columns=[*columns, "accuracy"])
    return table.assign(**{key: value for key, value in KIND.items() if key != "probabilities"})


def test_risk_coverage_averages_seeds_and_dashes_raw_probabilities():
    figure = draw_risk_coverage(risk_coverage())
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["validation", "query, per batch", "raw"]
    calibrated, _, raw, *_ = figure.axes[0].lines
    np.testing.assert_allclose(calibrated.get_ydata(), [1, 0.8])
    np.testing.assert_allclose(raw.get_ydata(), [0.9, 0.8])
    assert raw.get_linestyle() == "--" and calibrated.get_linestyle() == "-"
    alone = draw_risk_coverage(risk_coverage().query("probabilities == 'raw'"))
    assert [t.get_text() for t in alone.legends[0].get_texts()] == [
        "validation",
        "query, per batch",
    ]
    assert "nothing to draw" in words(draw_risk_coverage(risk_coverage().iloc[:0]))


def test_the_risk_that_was_asked_is_a_line():
    lines = draw_risk_coverage(risk_coverage(), 0.05).axes[0].lines
    assert list(lines[0].get_ydata()) == [0.95, 0.95]


def shifts() -> pd.DataFrame:
    """Of batch a half of the monocytes moved, of b none; b has no B cells."""
    rows = [("a", "Mono", 40, 20), ("a", "B", 30, 3), ("b", "Mono", 50, 0), ("a", "T", 9, 0)]
    return pd.DataFrame(rows, columns=["batch", "label", "n", "n_shifted"])


def test_labels_that_moved_are_shown_with_their_share():
    figure = draw_shifts(shifts())
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["B", "Mono"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a"]
    assert np.allclose(ax.images[0].get_array(), [[0.1, 0.5]])
    assert [t.get_text() for t in ax.texts] == ["3", "20"]
    both = draw_shifts(pd.concat([shifts(), pd.DataFrame([dict(batch="b", label="T", n=10,
                                                               n_shifted=10)])]))  # fmt: skip
    values = both.axes[0].images[0].get_array()
    assert np.allclose(values.filled(-1), [[0.1, 0.5, 0], [-1, 0, 1]])
    for nothing in (shifts().assign(n_shifted=0), shifts().iloc[:0]):
        assert "moved as a whole" in words(draw_shifts(nothing))


def test_equal_scores_of_different_columns_have_one_colour():
    table = scib()
    one = table["embedding"] == table["embedding"].iloc[0]
    table["kmeans_ari"], table["clisi_knn"] = 1.0, np.where(one, 1.0, 0.2)
    texts = [t for t in draw_scib_table(table).axes[0].texts if t.get_text() == "1.00"]
    colours = {tuple(np.round(t.get_bbox_patch().get_facecolor(), 1)) for t in texts
               if t.get_bbox_patch()}  # fmt: skip
    assert len(texts) > 1 and len(colours) == 1


def test_of_all_ways_and_levels_one_is_drawn():
    rows = [("classifier", "label", "raw"), ("knn", "label", "raw"), ("classifier", "broad", "raw"),
            ("classifier", "label", "calibrated")]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "level", "probabilities"])
    table = table.assign(strategy=["joint", "", None, None], n=range(4))
    assert list(one_kind(table)["n"]) == [0]
    assert list(one_kind(table, "calibrated")["n"]) == [3]
    assert list(one_kind(table, "calibrated")["strategy"]) == [""]
    both = one_kind(table.drop(columns="level"))  # of a table that has one level alone
    assert list(both["n"]) == [0, 2]


def test_read_table_keeps_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("strategy,truth,n,total\n,NA,1,0.5\njoint,T,,skipped(no labels)\n")
    table = read_table(path)
    assert table["strategy"].tolist() == ["", "joint"] and table["truth"].tolist() == ["NA", "T"]
    assert np.isnan(table["n"][1]) and table["total"][1] == "skipped(no labels)"
    path.write_text("")
    assert read_table(path).empty


def write_inputs(folder: Path) -> dict:
    """Inputs of plot-figures, and its arguments but `out`."""
    tables = {"history": history(), "confusion": confusion(), "scib": scib(labels=False)}
    tables |= {"reliability": reliability(), "risk_coverage": risk_coverage()}
    tables["shifts"] = shifts().assign(seed=0, variant="fixed", strategy="joint")
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    part = cells()
    obs = part[["batch", "role"]].assign(label=part["name"], predicted_label="T")
    obs.index = obs.index.astype(str)
    anndata.AnnData(obs=obs, obsm={"X_umap": part[["x", "y"]].to_numpy()}).write_h5ad(
        folder / "atlas.h5ad"
    )
    runs = [figures.MapRun("fixed", "joint", folder / "atlas.h5ad")]
    final = figures.FinalRun("fixed", "joint", 0, 0.1)
    return {"tables": folder, "runs": runs, "final": final}


ALL = get_args(figures.Name)


def test_commands_write_the_same_bytes_twice_together_and_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    arguments = write_inputs(tmp_path)
    figures.plot_figures(**arguments, figures=list(ALL), out=tmp_path / "together")
    for name in ALL:
        figures.plot_figures(**arguments, figures=[name], out=tmp_path / "alone")
        for suffix, start in (("svg", b"<?xml"), ("png", b"\x89PNG")):
            first, second = (
                (tmp_path / again / f"{name}.{suffix}").read_bytes()
                for again in ("together", "alone")
            )
            assert first.startswith(start) and first == second, name
    found = {path.name for path in (tmp_path / "together").iterdir() if path.name[0] != "."}
    assert found == {f"{name}.{suffix}" for name in ALL for suffix in ("svg", "png")}
    assert dict(matplotlib.rcParams) == before
    from matplotlib import pyplot

    assert not pyplot.get_fignums()


def test_bytes_do_not_depend_on_the_process(tmp_path):
    write_inputs(tmp_path)
    runs = [{"variant": "fixed", "strategy": "joint", "atlas": str(tmp_path / "atlas.h5ad")}]
    found = set()
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "atlasmap.commands.main", "plot-figures", str(tmp_path),
             "--figures", "scib_table", "--figures", "embeddings", "--runs", json.dumps(runs),
             "--out", str(tmp_path / seed)],
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        names = [f"{c}.{s}" for c in ("scib_table", "embeddings") for s in ("svg", "png")]
        found.add(tuple((tmp_path / seed / name).read_bytes() for name in names))
    assert len(found) == 1


def test_shifts_are_those_of_the_final_mapping():
    table = pd.concat([shifts().assign(seed=0, variant=v, strategy="joint") for v in ("a", "b")])
    own = figures.of_run(table, figures.FinalRun("b", "joint", 0))
    assert set(own["variant"]) == {"b"} and len(own) == len(shifts())
    assert figures.of_run(pd.DataFrame(), figures.FinalRun()).empty


def test_query_cells_are_named_by_prediction(tmp_path):
    write_inputs(tmp_path)
    table = figures.cells_of(anndata.read_h5ad(tmp_path / "atlas.h5ad"))
    assert set(table.loc[table["role"] == "query", "name"]) == {"T"}
    assert set(table.loc[table["role"] == "reference", "name"]) == {"B", "T", "Unknown"}
    bare = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    del bare.obs["predicted_label"]
    bare.uns["unlabeled_category"] = "no name"
    table = figures.cells_of(bare)
    assert set(table.loc[table["role"] == "query", "name"]) == {"no name"}


def protein_tables(n_proteins, n_labels, n_cells=600):
    rng = np.random.default_rng(0)
    names = [f"CD{k}_TotalSeqB" for k in range(n_proteins)]
    label = pd.Series(rng.integers(0, n_labels, n_cells)).map("a cell type called {}".format)
    has = pd.DataFrame(rng.random((n_labels, n_proteins)) < 0.3, sorted(set(label)), names)
    share = has.loc[label].to_numpy() * 0.9 + 0.05
    share = pd.DataFrame(share + rng.normal(0, 0.01, share.shape), columns=names)
    raw = pd.DataFrame(rng.poisson(5 + 100 * share).astype(float), columns=names)
    raw.iloc[: n_cells // 2, 0] = np.nan  # not measured in the reference
    role = pd.Series(["reference"] * (n_cells // 2) + ["query"] * (n_cells - n_cells // 2))
    return raw, 100 * share, share, role, label


@pytest.mark.parametrize(("n_proteins", "n_labels"), [(10, 10), (60, 60)])
def test_protein_figures(n_proteins, n_labels, tmp_path):
    raw, level, share, role, label = protein_tables(n_proteins, n_labels)
    ridges, dots = draw_ridges(raw, level, share, role), draw_dots(level, share, label)
    shown = min(n_proteins, 40)
    assert len(ridges.axes[0].get_yticklabels()) == shown
    assert len(dots.axes[0].get_yticklabels()) == n_labels
    assert len(dots.axes[0].collections[0].get_offsets()) == shown * n_labels
    said = f"{shown} of {n_proteins} proteins"
    assert (said in words(ridges)) == (said in words(dots)) == (n_proteins > 40)
    sizes = dots.axes[0].collections[0].get_sizes()
    assert sizes.max() / sizes.min() > 10
    if folder := os.environ.get("LOOK"):
        save(ridges, Path(folder) / f"ridges{n_labels}")
        save(dots, Path(folder) / f"dots{n_labels}")


def test_without_proteins_protein_figures_say_so():
    nothing = pd.DataFrame(index=range(3))
    assert "no proteins" in words(draw_dots(nothing, nothing, pd.Series(["a"] * 3)))
    assert "no proteins" in words(draw_ridges(nothing, nothing, nothing, pd.Series(["query"] * 3)))


def test_loss_curves_of_totalvi_have_a_panel_a_term():
    metrics = ("elbo", "reconstruction_loss_genes", "reconstruction_loss_proteins", "accuracy")
    rows = [
        (seed, "totalvi", "", "", epoch, split, metric, 1.0 / (epoch + 1))
        for seed in (0, 1) for epoch in range(5)
        for split in ("train", "validation") for metric in metrics
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=HISTORY)
    figure = draw_loss_curves(table)
    assert len(figure.axes) == 4 and "Reconstruction, proteins" in words(figure)
