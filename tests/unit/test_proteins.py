"""Protein counts: where they are found, what is refused, panels aligned by name."""

import json

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from citeseq import N_PROTEINS, citeseq
from scipy import sparse

from atlasmap.commands.data import write_contract
from atlasmap.data.prepare import checked_dataset, prepare_query, prepare_reference
from atlasmap.data.proteins import ISOTYPE, get
from atlasmap.data.readers import read_any
from atlasmap.data.registry import PROTEIN_NAMES, PROTEINS, Registry
from atlasmap.data.sheet import Dataset
from atlasmap.errors import AtlasmapError
from atlasmap.settings import DataConfig, DataSettings

NAMES = [f"p{k}" for k in range(N_PROTEINS)]
CITESEQ = DataConfig(modality="citeseq", data=DataSettings(n_top_genes=None))


def a_file(folder, batches, name="a.h5ad", seed=0, change=None):
    """CITE-seq cells as a user has them: a table in obsm."""
    cells = citeseq(batches, seed)
    out = anndata.AnnData(cells.X, cells.obs.drop(columns="dataset"), cells.var)
    out.obsm["protein_expression"] = pd.DataFrame(cells.obsm[PROTEINS], out.obs_names, NAMES)
    if change:
        change(out)
    out.write_h5ad(folder / name)
    return folder / name


def row(path, role="reference", **more):
    key = {"label_key": "label"} if role == "reference" else {"truth_key": "label"}
    return Dataset(id=path.stem, path=str(path), role=role, batch_key="batch", **key, **more)


def checked(path, **more):
    return checked_dataset(row(path, **more), path, CITESEQ)


def table_to_array(cells):
    table = cells.obsm.pop("protein_expression")
    cells.obsm["adt"], cells.uns["adt_names"] = table.to_numpy(), np.array(NAMES)


def test_a_table_and_an_array_with_names(tmp_path):
    table = get(checked(a_file(tmp_path, {"r": 30})))
    path = a_file(tmp_path, {"r": 30}, "b.h5ad", change=table_to_array)
    array = get(checked(path, proteins="adt", protein_names="adt_names"))
    assert list(table) == NAMES
    pd.testing.assert_frame_equal(table, array.set_axis(table.index))
    with pytest.raises(AtlasmapError, match="PROTEIN_NAMES_MISSING"):
        checked(path)


def test_mudata_and_10x_files_with_antibodies(tmp_path):
    cells = anndata.read_h5ad(a_file(tmp_path, {"r": 30}))
    table = cells.obsm.pop("protein_expression")
    plain, panel = pd.DataFrame(index=cells.obs_names), pd.DataFrame(index=NAMES)
    with h5py.File(tmp_path / "m.h5mu", "w") as file:
        shuffled = table.sample(frac=1, random_state=0)
        protein = anndata.AnnData(shuffled.to_numpy(), plain.loc[shuffled.index], panel)
        group = file.create_group("mod")
        anndata.io.write_elem(group, "rna", anndata.AnnData(cells.X, plain, cells.var))
        anndata.io.write_elem(group, "prot", protein)
        anndata.io.write_elem(file, "obs", cells.obs)
    mu = checked(tmp_path / "m.h5mu", proteins="prot")
    assert list(mu.obs["batch"].unique()) == ["r"]
    np.testing.assert_array_equal(get(mu), table)

    whole = np.hstack([cells.X.toarray(), table.to_numpy()])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("matrix")
        csc = sparse.csc_matrix(whole.T)
        group["data"], group["indices"], group["indptr"] = csc.data, csc.indices, csc.indptr
        group["shape"] = np.array(csc.shape)
        group["barcodes"] = np.array(cells.obs_names, dtype="S")
        features = group.create_group("features")
        names = [*cells.var_names, *NAMES]
        features["id"] = features["name"] = np.array(names, dtype="S")
        kinds = ["Gene Expression"] * cells.n_vars + ["Antibody Capture"] * N_PROTEINS
        features["feature_type"] = np.array(kinds, dtype="S")
        features["genome"] = np.array(["g"] * len(names), dtype="S")
    x = read_any(tmp_path / "x.h5")
    assert list(x.var_names) == list(cells.var_names)
    np.testing.assert_array_equal(x.obsm["protein_expression"], table)


def set_values(**values):
    def change(cells):
        for name, value in values.items():
            cells.obsm["protein_expression"].loc[cells.obs_names[:3], name] = value

    return change


def zero_in(batch):
    def change(cells):
        cells.obsm["protein_expression"].loc[cells.obs["batch"] == batch, "p2"] = 0

    return change


def rename_twice(cells):
    table_to_array(cells)
    cells.uns["adt_names"][1] = "p0"


def no_proteins(cells):
    del cells.obsm["protein_expression"]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (set_values(p1=np.nan), "PROTEINS_NAN", ["3 cells", "r_0"]),
        (set_values(p1=-1), "PROTEINS_NOT_COUNTS", ["-1"]),
        (set_values(p1=0.5), "PROTEINS_NOT_COUNTS", ["CLR"]),
        (zero_in("s"), "PROTEIN_ALL_ZERO", ["p2 in batch s", "`protein_zeros` in the sheet"]),
        (rename_twice, "PROTEIN_TWICE", ["p0"]),
        (no_proteins, "PROTEINS_MISSING", ["proteins", "none"]),
    ],
)  # fmt: skip
def test_bad_proteins_are_refused_by_name(tmp_path, change, code, words):
    path = a_file(tmp_path, {"r": 20, "s": 20}, change=change)
    with pytest.raises(AtlasmapError, match=code) as error:
        checked(path, protein_names="adt_names")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert error.value.expected and error.value.found and error.value.mend


def test_the_sheet_says_what_only_zeros_are(tmp_path):
    path = a_file(tmp_path, {"r": 20, "s": 20}, change=zero_in("s"))
    missing = get(checked(path, protein_zeros="missing"))
    assert missing["p2"].isna().sum() == 20 and missing["p2"].iloc[:20].notna().all()
    assert missing.drop(columns="p2").notna().all(axis=None)
    assert get(checked(path, protein_zeros="measured"))["p2"].eq(0).sum() >= 20


def test_panels_of_a_reference_are_joined_and_a_query_is_aligned(tmp_path):
    def without(*names):
        return lambda cells: cells.obsm.update(
            protein_expression=cells.obsm["protein_expression"].drop(columns=list(names))
        )

    one = a_file(tmp_path, {"r": 40}, "one.h5ad", change=without("p0"))
    two = a_file(tmp_path, {"s": 40}, "two.h5ad", seed=1, change=without("p3", "p4"))
    prepared = prepare_reference([row(one), row(two)], [one, two], CITESEQ)
    assert set(prepared.adata.uns[PROTEIN_NAMES]) == set(NAMES)
    lacking = {"r": ["p0"], "s": ["p3", "p4"]}
    assert {k: sorted(v) for k, v in prepared.facts["panel"]["proteins_missing"].items()} == lacking
    values = get(prepared.adata)
    assert values.loc[prepared.adata.obs["batch"] == "r", "p0"].isna().all()
    registry = Registry.of(prepared.adata)
    assert sorted(registry.proteins) == sorted(NAMES)

    def changed(cells):
        without("p5")(cells)
        cells.obsm["protein_expression"]["other"] = 1.0

    query = a_file(tmp_path, {"q": 30}, "q.h5ad", seed=2, change=changed)
    whole = checked_dataset(row(query, "query"), query, CITESEQ)
    aligned = prepare_query(whole, row(query, "query"), "q", registry, CITESEQ)
    assert aligned.facts["proteins_missing"] == ["p5"]
    assert aligned.facts["proteins_not_in_reference"] == ["other"]
    assert get(aligned.adata)["p5"].isna().all()
    assert list(get(aligned.adata)) == registry.proteins
    aligned.adata.write_h5ad(tmp_path / "again.h5ad")
    again = anndata.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(registry.protein_counts(again), get(aligned.adata))

    only_rna = a_file(tmp_path, {"q": 30}, "rna.h5ad", seed=2, change=no_proteins)
    whole = checked_dataset(row(only_rna, "query", proteins="none"), only_rna, CITESEQ)
    aligned = prepare_query(whole, row(only_rna, "query"), "q", registry, CITESEQ)
    assert get(aligned.adata).isna().all(axis=None) and aligned.facts["n_proteins"] == 0

    def renamed(cells):
        cells.obsm["protein_expression"].columns = [f"{n}_TotalSeqB" for n in NAMES]

    strange = a_file(tmp_path, {"q": 30}, "strange.h5ad", seed=2, change=renamed)
    whole = checked_dataset(row(strange, "query"), strange, CITESEQ)
    with pytest.raises(AtlasmapError, match="PROTEINS_NONE_SHARED"):
        prepare_query(whole, row(strange, "query"), "q", registry, CITESEQ)


def test_batches_can_be_masked(tmp_path):
    path = a_file(tmp_path, {"r": 20, "s": 20})
    masking = DataConfig(modality="citeseq", data=DataSettings(mask_proteins=["s"]))
    table = get(checked_dataset(row(path), path, masking))
    assert table.iloc[20:].isna().all(axis=None) and table.iloc[:20].notna().all(axis=None)


@pytest.mark.parametrize(
    "name", ["IgG1_control_TotalSeqB", "Rat_IgG2b", "Isotype-MOPC21", "Rat-IgG1-1", "Rag-IgG2c"]
)
def test_isotype_controls_are_known(name):
    assert (
        ISOTYPE.search(name) and not ISOTYPE.search("CD3_TotalSeqB") and not ISOTYPE.search("IgD")
    )


def test_panels_are_told_and_a_batch_that_is_not_there_cannot_be_masked(tmp_path, capsys):
    facts = {"n_cells": 1, "n_genes": 1, "batches": {"r": 1}}
    facts["panel"] = {"proteins": ["CD3", "CD4"], "proteins_missing": {"r": ["CD4"]}}
    (tmp_path / "r.json").write_text(json.dumps(facts))
    query = {"batch": "q", "n_cells": 1, "gene_overlap": 1, "n_proteins": 1}
    query |= {"proteins_missing": ["CD4"], "proteins_not_in_reference": ["CD4-2"]}
    (tmp_path / "q.json").write_text(json.dumps(query))
    paths = {"reference": tmp_path / "r.json", "out": tmp_path / "contract.json"}
    write_contract(tmp_path / "q.json", **paths, masked=["r", "q"])
    said = capsys.readouterr().out
    assert "panel: 2 proteins\n  reference batch r lacks CD4\n" in said
    assert "1 of 2 proteins; lacks CD4; left out, as the reference lacks them: CD4-2\n" in said
    (tmp_path / "contract.json").unlink()
    with pytest.raises(AtlasmapError, match="MASK_UNKNOWN"):
        write_contract(tmp_path / "q.json", **paths, masked=["R"])
    assert not (tmp_path / "contract.json").exists()


def renamed(suffix):
    def change(cells):
        cells.obsm["protein_expression"].columns = [f"{name}{suffix}" for name in NAMES]

    return change


def test_references_that_share_no_protein_or_have_none_are_refused(tmp_path):
    one = a_file(tmp_path, {"r": 30}, "one.h5ad")
    two = a_file(tmp_path, {"s": 30}, "two.h5ad", seed=1, change=renamed("_TotalSeqB"))
    with pytest.raises(AtlasmapError, match="PROTEINS_NONE_SHARED"):
        prepare_reference([row(one), row(two)], [one, two], CITESEQ)
    bare = a_file(tmp_path, {"r": 30}, "bare.h5ad", change=no_proteins)
    with pytest.raises(AtlasmapError, match="PROTEINS_NO_REFERENCE"):
        prepare_reference([row(bare, proteins="none")], [bare], CITESEQ)
    # RNA alone beside a data set that has proteins is fine
    rna = a_file(tmp_path, {"s": 30}, "rna.h5ad", seed=1, change=no_proteins)
    prepare_reference([row(one), row(rna, proteins="none")], [one, rna], CITESEQ)


def test_a_protein_that_no_batch_has_is_refused(tmp_path):
    path = a_file(tmp_path, {"r": 20})
    masking = DataConfig(
        modality="citeseq", data=DataSettings(n_top_genes=None, mask_proteins=["r"])
    )
    with pytest.raises(AtlasmapError, match="PROTEIN_NOWHERE"):
        prepare_reference([row(path)], [path], masking)
