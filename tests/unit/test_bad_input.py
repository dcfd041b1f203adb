"""Every bad input has a clear error before anything trains: code, expected, found, mend."""

import gzip
import json
import os
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from parts import CHECKS, load_config, read_sheet
from scipy import sparse
from small import CONFIG, caught, config

from atlasmap.config import read_config
from atlasmap.data.blocks import in_blocks
from atlasmap.data.label_tree import as_tree, read_levels
from atlasmap.data.prepare import (
    checked_dataset,
    prepare_query,
    prepare_reference,
    sizes_of_batches,
)
from atlasmap.data.readers import read_any
from atlasmap.data.registry import Registry
from atlasmap.data.sheet import Dataset
from atlasmap.data.stored import BlockOf
from atlasmap.errors import AtlasmapError, check_input, from_home


def set_x(adata, function):
    dense = adata.X.toarray()
    function(dense)
    adata.X = sparse.csr_matrix(dense)


def test_of_a_batch_alone_no_other_counts_are_read(simulated, tmp_path, monkeypatch):
    """Each batch is prepared by a job of its own: together they read a file once."""
    path, taken = tmp_path / "q.h5ad", []
    query = simulated[simulated.obs["role"] == "query"].copy()
    query = query[np.argsort(query.obs["batch"], kind="stable")].copy()
    query.write_h5ad(path)
    read = BlockOf.__call__
    monkeypatch.setattr("atlasmap.data.stored.ROWS", 16)

    def told(self, k):
        taken.append(int(k[0]))
        return read(self, k)

    monkeypatch.setattr(BlockOf, "__call__", told)
    row = Dataset(id="q", path=str(path), role="query", batch_key="batch")
    for name in ("query0", "query1"):
        cells = checked_dataset(row, path, CONFIG, batch=name)
        own = query[query.obs["batch"] == name]
        assert list(cells.obs["barcode"]) == list(own.obs_names) and (cells.X != own.X).nnz == 0
    twice = len(taken) - len(set(taken))
    assert set(taken) == set(range(-(-query.n_obs // 16))) and twice <= 1  # where the two meet


def test_missing_file(tmp_path):
    assert "nope.h5ad" in caught("FILE_MISSING", read_any, tmp_path / "nope.h5ad").found


def test_not_an_h5ad(tmp_path):
    path = tmp_path / "a.h5ad"
    path.write_text("not at all")
    caught("FILE_NOT_HDF5", read_any, path)


def test_hdf5_but_not_an_h5ad(tmp_path):
    import h5py

    path = tmp_path / "a.h5ad"
    with h5py.File(path, "w") as file:
        file["X"] = "text"
    caught("FILE_UNREADABLE", read_any, path)


def test_truncated_h5ad(simulated, tmp_path):
    path = tmp_path / "a.h5ad"
    simulated.write_h5ad(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    assert "again" in caught("FILE_TRUNCATED", read_any, path).mend


def test_unknown_format(tmp_path):
    path = tmp_path / "a.loom"
    path.write_text("x")
    caught("FILE_FORMAT", read_any, path)


def test_missing_layer_names_the_layers(prepare):
    def change(adata):
        adata.layers["raw_counts"] = adata.X.copy()

    assert "raw_counts" in caught("LAYER_MISSING", prepare, change, counts="counts").found


@pytest.mark.parametrize("key", ["batch_key", "label_key"])
def test_missing_obs_key_names_the_keys(prepare, key):
    found = caught("OBS_KEY_MISSING", prepare, None, **{key: "donor"}).found
    assert "cell_type" in found and "lineage" in found


def test_normalised_values_say_where_counts_are(prepare):
    def change(adata):
        adata.layers["counts"] = adata.X.copy()
        adata.X = adata.X.log1p()

    error = caught("COUNTS_NOT_INTEGER", prepare, change)
    assert "counts seem to be in counts" in error.mend and "corrected_float" in error.mend
    assert prepare(change, counts="counts").adata.n_obs > 0


@pytest.mark.parametrize(
    ("normalise", "said"),
    [(lambda x: x, "normalised"), (np.log1p, "log1p"), (lambda x: np.log2(x + 1), "log2")],
)
def test_normalised_values_are_not_corrected_counts(prepare, normalise, said):
    def change(adata):
        depth = np.asarray(adata.X.sum(1))
        scaled = adata.X.multiply(1e4 / depth).tocsr()
        scaled.data = normalise(scaled.data).astype(np.float32)
        adata.X = scaled

    error = caught("COUNTS_NORMALISED", prepare, change, config(counts="corrected_float"))
    assert said in error.found


def test_corrected_float_is_opt_in(prepare):
    def change(adata):
        left = np.random.default_rng(0).uniform(0.8, 1, adata.X.nnz)  # each its own
        adata.X.data = (adata.X.data * left).astype(np.float32)

    caught("COUNTS_NOT_INTEGER", prepare, change)
    assert prepare(change, config(counts="corrected_float")).adata.n_obs > 0


def test_negative_values(prepare):
    caught("COUNTS_NEGATIVE", prepare, lambda a: set_x(a, lambda x: x.__setitem__((3, 4), -2)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_name_the_cells(prepare, value):
    error = caught(
        "COUNTS_NOT_FINITE", prepare, lambda a: set_x(a, lambda x: x.__setitem__((3, 4), value))
    )
    assert "1 cells" in error.found


def test_empty_cells_are_named(prepare, simulated):
    error = caught("COUNTS_EMPTY_CELLS", prepare, lambda a: set_x(a, lambda x: x.__setitem__(5, 0)))
    assert simulated.obs_names[5] in error.found


def test_cells_empty_among_the_chosen_genes(prepare):
    def change(adata):
        def few(x):
            x[5] = 0
            x[5, int(x.var(0).argmin())] = 1

        set_x(adata, few)

    caught("COUNTS_EMPTY_CELLS", prepare, change, config(n_top_genes=40))


def test_duplicated_genes(prepare):
    def change(adata):
        adata.var_names = ["GENE0001" if k == 0 else n for k, n in enumerate(adata.var_names)]

    assert "GENE0001" in caught("GENES_DUPLICATED", prepare, change).found


def test_duplicated_cells(prepare):
    def change(adata):
        adata.obs_names = [adata.obs_names[1], *adata.obs_names[1:]]

    caught("CELLS_DUPLICATED", prepare, change)


@pytest.mark.parametrize("value", [np.nan, "", "nan", "NaN", "<NA>", "None", " "])
def test_cells_without_a_batch(prepare, value):
    def change(adata):
        column = adata.obs["batch"].astype(object)
        column.iloc[4] = value
        adata.obs["batch"] = pd.Categorical(column)

    assert "1 cells" in caught("BATCH_MISSING", prepare, change).found


def test_missing_labels_are_unlabelled_however_they_are_written(prepare):
    def change(adata):
        column = adata.obs["cell_type"].astype(object)
        column.iloc[:5] = ["nan", "NaN", "<NA>", "None", ""]
        adata.obs["cell_type"] = pd.Categorical(column)

    assert prepare(change).facts["n_unlabelled"] == 5


def test_batch_names_that_no_folder_can_have(prepare):
    for name, code in [("all", "BATCH_NAME_RESERVED"), ("日" * 40, "BATCH_NAME_TOO_LONG")]:
        caught(code, prepare, lambda a, name=name: a.obs.__setitem__("batch", name))


@pytest.mark.parametrize("as_category", [False, True])
def test_one_and_one_point_zero_are_the_same_category(prepare, as_category):
    settings = config(categorical_covariates=["site"])

    def change(adata):
        site = pd.Series(1.0, index=adata.obs_names)
        adata.obs["site"] = site.astype("category") if as_category else site

    prepared = prepare(change, settings)
    assert list(prepared.adata.obs["site"].cat.categories) == ["1"]


def test_a_reference_row_without_labels_leaves_the_others_theirs(rows, simulated, tmp_path):
    other = simulated[simulated.obs["batch"] == "batch3"].copy()
    other.write_h5ad(tmp_path / "other.h5ad")
    plain = Dataset(id="o", path="x", role="reference", batch_key="batch")
    first = Dataset(**(vars(rows[0]) | {"obs_filter": "batch in ['batch0', 'batch1']"}))
    paths = [rows[0].path, tmp_path / "other.h5ad"]
    prepared = prepare_reference([first, plain], paths, CONFIG)
    unlabelled = prepared.adata.obs["label"] == "Unknown"
    assert (unlabelled == (prepared.adata.obs["batch"] == "batch3")).all()
    assert len(prepared.facts["labels"]) >= 4


def test_a_batch_of_two_cells(prepare):
    def change(adata):
        adata.obs.iloc[:2, adata.obs.columns.get_loc("batch")] = "tiny"

    assert "tiny: 2" in caught("BATCH_TOO_SMALL", prepare, change).found


def test_rare_labels_become_unlabelled_and_are_listed(prepare):
    def change(adata):
        adata.obs.iloc[:2, adata.obs.columns.get_loc("cell_type")] = "rare"

    prepared = prepare(change)
    assert prepared.facts["rare_labels_unlabelled"] == {"rare": 2}
    assert (prepared.adata.obs["label"] == "Unknown").sum() == 2
    assert "rare" not in set(prepared.adata.obs["label"])


def test_no_labelled_cell_unless_labels_none(prepare):
    def change(adata):
        adata.obs["cell_type"] = ""

    assert "labels: none" in caught("NO_LABELS", prepare, change).mend
    facts = prepare(change, config(labels="none")).facts
    assert "left out" in facts["labels"]


def test_unlabeled_category_that_is_a_label(prepare):
    settings = config(unlabeled_category="L0.0")
    assert "L0.0" in caught("LABEL_UNLABELED_COLLIDES", prepare, None, settings).expected
    settings = config(unlabeled_category="L0.0", unlabeled_values=["L0.0"])
    assert prepare(None, settings).facts["n_unlabelled"] > 0


def ids_in_a_column(adata):
    adata.var["feature_id"] = adata.var_names
    adata.var_names = [f"ENSG{k:011d}" for k in range(adata.n_vars)]


def test_low_gene_overlap_names_genes_and_the_best_column(prepare):
    def change(adata):
        ids_in_a_column(adata)
        adata.var["feature_id"] = [*adata.var["feature_id"][:20], *adata.var_names[20:]]

    error = caught("GENES_LOW_OVERLAP", prepare, change, role="query")
    for said in ("25.0%", "(feature_id against", "GENE0020"):
        assert said in error.found


def test_the_column_that_holds_the_ids_is_found(prepare):
    facts = prepare(ids_in_a_column, role="query").facts
    assert facts["gene_overlap"] == 1
    assert facts["genes_matched"] == {"query": "feature_id", "reference": "ids"}
    facts = prepare(ids_in_a_column, role="query", gene_id="feature_id").facts
    assert facts["genes_matched"] == {"query": "feature_id", "reference": "ids"}


def with_symbols(adata):
    """Ensembl ids in the index, symbols beside them; two genes share a symbol."""
    names = list(adata.var_names)
    adata.var_names = [f"ENSG{k:011d}.{k % 3}" for k in range(adata.n_vars)]
    adata.var["feature_name"] = [*names[:-1], names[-2]]


def test_a_query_in_the_other_namespace_maps_by_itself(prepare, simulated, tmp_path):
    reference = prepare(with_symbols).adata
    registry = Registry.of(reference)
    assert registry.genes[0] == "ENSG00000000000" and registry.symbols[0] == "GENE0000"
    adata = simulated[simulated.obs["role"] == "query"].copy()
    adata = adata[:, ::-1].copy()  # indexed by symbol, in another order
    adata.write_h5ad(tmp_path / "q.h5ad")
    row = Dataset(id="q", path="x", role="query", batch_key="batch")
    whole = checked_dataset(row, tmp_path / "q.h5ad", CONFIG)
    prepared = prepare_query(whole, row, "query0", registry, CONFIG)
    assert prepared.facts["genes_matched"] == {"query": "index", "reference": "symbols"}
    # the symbol that two reference genes share says nothing about either
    assert prepared.facts["genes_missing"] == ["ENSG00000000078", "ENSG00000000079"]
    cells = adata[(adata.obs["batch"] == "query0").to_numpy()].X.toarray()[:, ::-1]
    assert np.array_equal(prepared.adata.X.toarray()[:, :78], cells[:, :78])
    # and the other way about: the reference by symbol, the query by id with symbols beside
    plain = Registry.of(prepare().adata)
    facts = prepare(with_symbols, role="query", registry=plain).facts
    assert facts["genes_matched"] == {"query": "feature_name", "reference": "ids"}


def test_some_missing_genes_are_filled_with_zeros_and_listed(prepare):
    prepared = prepare(lambda a: a[:, 8:].copy(), role="query")
    assert prepared.facts["gene_overlap"] == 0.9
    assert prepared.facts["genes_missing"][:2] == ["GENE0000", "GENE0001"]
    (counts,) = in_blocks(prepared.adata.X)
    assert counts[:, :8].nnz == 0 and counts[:, 8:].nnz > 0


def test_ensembl_versions_are_stripped(simulated, prepare):
    from atlasmap.data.genes import align

    counts = sparse.csr_matrix(np.eye(3, dtype=np.float32))
    names = ["ENSG00000000003.14", "ENSG00000000005.6", "ENSG00000000419"]
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=names))
    genes = pd.Index(["ENSG00000000419.2", "ENSG00000000003"])
    aligned = align(adata, list(genes), None, 0.8, "q")
    assert aligned.counts.toarray().tolist() == [[0, 1], [0, 0], [1, 0]]


def test_a_name_that_either_side_has_twice_says_nothing():
    from atlasmap.data.genes import places

    names, wanted = pd.Index(["a", "b", "b", "c"]), pd.Index(["c", "b", "a", "x"])
    assert places(names, wanted).tolist() == [3, -1, 0, -1]
    assert places(pd.Index(["a", "c"]), pd.Index(["c", "a", "a"])).tolist() == [1, -1, -1]


@pytest.mark.parametrize("name", ["7", 7, 7.0])
def test_a_query_batch_named_like_a_reference_batch(rows, simulated, tmp_path, name):
    adata = simulated[simulated.obs["role"] == "query"].copy()
    adata.obs["batch"] = name
    adata.write_h5ad(tmp_path / "clash.h5ad")
    row = Dataset(id="d", path="x", role="query", batch_key="batch")
    whole = checked_dataset(row, tmp_path / "clash.h5ad", CONFIG)
    registry = Registry(adata.var_names.tolist(), None, ["7"], ["a"], "Unknown")
    batch = whole.obs["batch"].iloc[0]
    caught("QUERY_BATCH_IS_REFERENCE", prepare_query, whole, row, batch, registry, CONFIG)


def test_more_variable_genes_than_genes(prepare):
    assert "80" in caught("HVG_TOO_MANY", prepare, None, config(n_top_genes=81)).expected


def test_a_filter_that_is_no_expression_or_keeps_no_cell(prepare):
    assert "lineage" in caught("FILTER_INVALID", prepare, None, obs_filter="donor == 1").mend
    caught("FILTER_EMPTY", prepare, None, obs_filter="role == 'nobody'")
    for expression in ("lineage", "'yes'"):
        caught("FILTER_INVALID", prepare, None, obs_filter=expression)


def test_the_same_batch_in_two_reference_data_sets(rows):
    twin = Dataset(**(vars(rows[0]) | {"id": "twin"}))
    paths = [rows[0].path] * 2
    caught("BATCH_NAME_TWICE", prepare_reference, [rows[0], twin], paths, CONFIG)


def test_covariates_with_gaps(prepare):
    def change(adata):
        adata.obs["age"] = "12"
        adata.obs.iloc[3, adata.obs.columns.get_loc("age")] = "old"

    settings = config(continuous_covariates=["age"])
    assert "age: 1" in caught("COVARIATE_MISSING_VALUES", prepare, change, settings).found


def test_references_without_a_common_gene(simulated, tmp_path):
    first, second = (simulated[simulated.obs["batch"] == f"batch{k}"].copy() for k in (0, 1))
    second.var_names = [f"other{k}" for k in range(second.n_vars)]
    datasets, paths = [], []
    for name, adata in [("a", first), ("b", second)]:
        paths.append(tmp_path / f"{name}.h5ad")
        adata.write_h5ad(paths[-1])
        datasets.append(
            Dataset(id=name, path="x", role="reference", batch_key="batch", label_key="cell_type")
        )
    caught("GENES_LOW_OVERLAP", prepare_reference, datasets, paths, CONFIG)


def test_query_batches_are_found(rows):
    assert sizes_of_batches(rows[1], rows[1].path, CONFIG) == {"query0": 100, "query1": 100}


# --- config and sheet

HEADER = "id\tpath\trole\tlabel_key\n"


def test_an_unknown_config_key_names_the_nearest():
    error = caught("CONFIG_INVALID", load_config, {"atlas": "a", "datasets": "d", "varaints": []})
    assert "did you mean variants?" in error.found
    block = {"atlas": "a", "datasets": "d", "scvi": {"train": {"max_epoch": 3}}}
    error = caught("CONFIG_INVALID", load_config, block)
    assert "scvi.train.max_epoch" in error.found
    assert "did you mean scvi.train.max_epochs?" in error.found
    block = {"atlas": "a", "datasets": "d", "scanvi_linear": {"classification_ration": 3}}
    assert "classification_ratio" in caught("CONFIG_INVALID", load_config, block).found


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "gpu"}, {"variants": ["fix"]}, {"seeds": []}, {"seeds": [1, 1]},
        {"scvi": {"n_latent": 0}}, {"data": {"min_gene_overlap": 1.5}}, {"atlas": "a b"},
        {"final": {"variant": "linear"}, "variants": ["fixed"]}, {"final": {"seed": 9}},
        {"strategies": ["joint"], "final": {"strategy": "per_batch"}},
        {"scvi": {"train": {"learning_rate": float("inf")}}}, {"seeds": [-1]}, {"seeds": [2**32]},
        {"surgery": {"gradient_clip": float("inf")}}, {"surgery": {"gradient_clip": float("nan")}},
        {"surgery": {"max_epochs": 1e22}}, {"scvi": {"train": {"learning_rate": 1e9}}},
        {"scvi": {"n_hidden": 10**9}}, {"data": {"memory_gb": float("nan")}},
        {"scanvi": {"classification_ratio": float("inf")}}, {"checkpoint_minutes": float("inf")},
        {"umap": {"min_dist": float("inf")}}, {"simulate": {"depth": 1e300}},
    ],
)  # fmt: skip
def test_wrong_config_values(wrong):
    with pytest.raises(AtlasmapError) as error:
        load_config({"atlas": "a", "datasets": "d"} | wrong)
    assert error.value.code.startswith("CONFIG_")


def test_required_config_keys():
    assert "atlas is required" in caught("CONFIG_INVALID", load_config, {"datasets": "d"}).found


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (HEADER + "a\tx\treferense\tl\n", "SHEET_INVALID", "referense"),
        ("id\tpath\trole\tlabelkey\na\tx\treference\tl\n", "SHEET_INVALID", "label_key?"),
        (HEADER + "a\tx\treference\tl\na\ty\tquery\t\n", "SHEET_ID_TWICE", "a"),
        (HEADER + "a\tx\tquery\t\n", "SHEET_NO_REFERENCE", "none"),
        (HEADER + "a\tx\treference\tl\nb\ty\tquery\tl\n", "SHEET_LABEL_ON_QUERY", "b"),
        (HEADER + "a\tbuiltin:pbmc\treference\tl\n", "SHEET_BUILTIN", "builtin:pbmc"),
        (HEADER + "a\tx\treference\n", "SHEET_COLUMNS", "row 1"),
        ("id,path,role\na,x,reference\n", "SHEET_COLUMNS", "'id,path,role'"),
        ("id\tpath\trole\tpath\na\tx\treference\ty\n", "SHEET_COLUMNS", "path"),
        (HEADER + 'a\t"x\treference\tl\nb\ty"\tquery\t\n', "SHEET_QUOTES", "row 1"),
        (HEADER + "a\tx\treference\tl\nb\ty\tquery\t" + "x" * 140_000, "SHEET_QUOTES", "row 2"),
        ("# nothing but a comment\n", "SHEET_COLUMNS", "''"),
    ],
)
def test_wrong_sheets(tmp_path, text, code, said):
    path = tmp_path / "sheet.tsv"
    path.write_text(text)
    assert said in caught(code, read_sheet, path).found


SAVED_AS = {
    "utf-16": (lambda text: text.encode("utf-16"), "UTF-16", "iconv -f UTF-16"),
    "utf-16 without a mark": (lambda text: text.encode("utf-16-le"), "binary", "iconv -f UTF-16"),
    "latin-1": (lambda text: text.encode("latin-1"), "line 2", "iconv -f LATIN1"),
    "gzip": (lambda text: gzip.compress(text.encode()), "gzip", "gunzip"),
    "xlsx": (lambda text: b"PK\x03\x04" + text.encode(), "workbook", "export"),
    "xls": (lambda text: b"\xd0\xcf\x11\xe0" + text.encode(), "workbook", "export"),
    "empty": (lambda text: b"\xef\xbb\xbf\n", "empty", "write"),
}


@pytest.mark.parametrize(("save", "said", "mend"), SAVED_AS.values(), ids=SAVED_AS)
@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_sheet, HEADER + "a\tä\treference\tl\n"),
        (lambda path: read_levels(path, ["ä"]), "child\tparent\nä\tb\n"),
        (read_config, "atlas: a\ndatasets: ä\n"),
    ],
    ids=["sheet", "label tree", "config"],
)
def test_texts_that_are_not_utf8_say_how_to_save_them(tmp_path, read, text, save, said, mend):
    path = tmp_path / "text"
    path.write_bytes(save(text))
    error = caught("TEXT_UNREADABLE", read, path)
    assert said in error.found and mend in error.mend
    path.write_text(text, encoding="utf-8-sig")
    assert read(path)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!int ''\n",
        "a: !!bool foo\n",
        "a: !!timestamp foo\n",
        "[" * 5000,
        "- a\n",
        "atlas: [\n",
        "atlas: a\n\tb: c\n",
        "nothing",
    ],
)
def test_a_config_that_is_no_yaml_of_keys(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    caught("CONFIG_YAML", read_config, tmp_path / "config.yaml")


@pytest.mark.parametrize("between", ["\t", ",", ";"])
def test_a_label_tree_with_ragged_rows_is_read_as_it_stands(tmp_path, between):
    path = tmp_path / "tree"
    rows = ["child\tparent", "A\tX\t", "B\tX\t\t", "C", "", " D \t X "]
    path.write_text("\n".join(rows).replace("\t", between))
    assert read_levels(path, ["A"]).tree.parents == {"A": "X", "B": "X", "D": "X"}
    path.write_text("label\tlevel1\tlevel2\t\nA\tX\tXA\t\nB\tX\n".replace("\t", between))
    assert read_levels(path, ["A", "B"]).tree.parents == {"A": "XA", "XA": "X", "B": "X"}


def test_a_deep_label_tree_takes_no_time(tmp_path):
    names = [f"n{k}" for k in range(20_000)]
    pairs = "".join(f"{a},{b}\n" for a, b in pairwise(names))
    (tmp_path / "tree.csv").write_text("child,parent\n" + pairs)
    began = time.monotonic()
    assert len(as_tree(pairwise(names), tmp_path / "tree.csv").parents) == 19_999
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "text",
    ["child\n", "one column\na\n", 'child,parent\n"a,b\n', "child,parent\nA, b,X\n",
     "child,child,parent\na,b,c\n", "child,parent\na,b\na,c\n", "child,parent\na,b\nb,a\n"],
)  # fmt: skip
def test_a_label_tree_that_is_no_table(tmp_path, text):
    (tmp_path / "tree.csv").write_text(text)
    caught("LABEL_TREE", read_levels, tmp_path / "tree.csv", ["a"])


def test_paths_that_no_job_could_open(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5ad")
    (tmp_path / "{a}.h5ad").touch()
    caught("FILE_MISSING", check_input, from_home("~nobody-of-that-name/x"), "`path`")
    caught("FILE_MISSING", check_input, Path("x" * 5000), "`path`")
    for name, code in [("pipe", "FILE_KIND"), ("{a}", "PATH_BRACES"), ("none", "FILE_MISSING")]:
        path = tmp_path / f"{name}.h5ad"
        caught(code, check_input, path, "`path`")
        caught(code, read_any, path)


def test_a_sheet_saved_by_a_spreadsheet_is_read(tmp_path):
    path = tmp_path / "sheet.tsv"
    path.write_text(HEADER + "a\tx\treference\tl\n", encoding="utf-8-sig")
    assert read_sheet(path)[0].id == "a"


@pytest.mark.parametrize("key", ["batch", "label", "truth", "dataset", "confidence"])
def test_covariates_that_results_have_of_their_own(key):
    given = {"atlas": "a", "datasets": "d", "categorical_covariates": [key]}
    assert key in caught("COVARIATE_RESERVED", load_config, given).found


def test_a_reference_that_no_query_can_be_mapped_onto():
    given = {"atlas": "a", "datasets": "d", "scvi": {"encode_covariates": False}}
    caught("SURGERY_NOOP", CHECKS.check_mappable, load_config(given))
    CHECKS.check_mappable(load_config({"atlas": "a", "datasets": "d"}))


@pytest.mark.parametrize("name", ["a.zarr", "a.h5"])
def test_broken_zarr_and_10x_files(tmp_path, name):
    import h5py

    path = tmp_path / name
    if path.suffix == ".zarr":
        path.mkdir()
    else:
        with h5py.File(path, "w") as file:
            file["x"] = [1]
    caught("FILE_UNREADABLE", read_any, path)


def test_missing_sheet(tmp_path):
    caught("SHEET_MISSING", read_sheet, tmp_path / "none.tsv")


# --- what users bring besides h5ad


def test_10x_h5_mtx_and_zarr_are_read(simulated, tmp_path):
    import h5py
    from scipy.io import mmwrite

    small = simulated[:20].copy()
    small.write_zarr(tmp_path / "a.zarr")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("matrix")
        genes = group.create_group("features")
        matrix = small.X.tocsr().astype(np.int32)
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array(small.shape[::-1])
        group["barcodes"] = small.obs_names.to_numpy().astype("S")
        genes["id"] = small.var_names.to_numpy().astype("S")
        genes["name"] = np.array([f"symbol{k}" for k in range(small.n_vars)]).astype("S")
        genes["feature_type"] = np.array([b"Gene Expression"] * small.n_vars)
        genes["genome"] = np.array([b"g"] * small.n_vars)
    folder = tmp_path / "mtx"
    folder.mkdir()
    mmwrite(folder / "GSM1_matrix.mtx", small.X.T.tocoo())
    table = pd.DataFrame({"id": small.var_names, "name": small.var_names, "t": "Gene Expression"})
    table.to_csv(folder / "GSM1_genes.tsv", sep="\t", header=False, index=False)
    small.obs_names.to_frame().to_csv(
        folder / "GSM1_barcodes.tsv", sep="\t", header=False, index=False
    )
    for name in ("a.zarr", "a.h5", "mtx"):
        adata = read_any(tmp_path / name)
        assert list(adata.var_names) == list(small.var_names), name
        np.testing.assert_array_equal(sparse.csr_matrix(adata.X).toarray(), small.X.toarray())


def test_facts_are_json(rows):
    facts = prepare_reference([rows[0]], [rows[0].path], CONFIG).facts
    assert json.loads(json.dumps(facts)) == facts


def test_ontology_ids_beside_the_labels_are_kept(prepare):
    def change(adata):
        adata.obs["cell_type_ontology_term_id"] = "CL:" + adata.obs["cell_type"].str[-3:]

    with_ids, without = prepare(change), prepare()
    obs = with_ids.adata.obs.astype(str)
    assert (obs["label_ontology_term_id"] == "CL:" + obs["label"].str[-3:]).all()
    assert "label_ontology_term_id" not in without.adata.obs


def test_ontology_ids_of_some_data_sets_are_kept(rows, simulated, tmp_path):
    with_ids = simulated.copy()
    with_ids.obs["cell_type_ontology_term_id"] = "CL:1"
    path = tmp_path / "with_ids.h5ad"
    with_ids.write_h5ad(path)
    other = replace(rows[1], path=str(path), role="reference", label_key="cell_type", truth_key="")
    obs = prepare_reference([rows[0], other], [rows[0].path, path], CONFIG).adata.obs.astype(str)
    ids = obs.groupby("dataset")["label_ontology_term_id"].unique().map(list).to_dict()
    assert ids == {"ref": [""], "query": ["CL:1"]}
