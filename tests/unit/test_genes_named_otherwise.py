"""Genes that two files name or spell differently, and genes that are not there."""

import anndata
import numpy as np
import pytest
from scipy import sparse
from small import CONFIG, caught, config

from atlasmap.data.contract import gene_warnings
from atlasmap.data.genes import align
from atlasmap.data.missing_genes import families_missing, spelled_otherwise
from atlasmap.data.prepare import prepare_reference
from atlasmap.data.sheet import Dataset

HLA = [f"HLA-D{kind}{n}" for kind in "PQR" for n in ("A1", "B1", "A2")]
MT = ["MT-CO1", "MT-CO2", "MT-ND1", "MT-ATP6"]


@pytest.fixture
def two(simulated, tmp_path):
    """Prepare a reference of two files, the second one's batches and genes changed."""

    def run(change, first=lambda a: None, settings=CONFIG):
        reference = simulated[simulated.obs["role"] == "reference"].copy()
        is_first = reference.obs["batch"].isin(["batch0", "batch1"]).to_numpy()
        paths, rows = [], []
        for name, keep, make in (("a", is_first, first), ("b", ~is_first, change)):
            part = reference[keep].copy()
            part = make(part) or part
            part.write_h5ad(tmp_path / f"{name}.h5ad")
            paths.append(tmp_path / f"{name}.h5ad")
            given = {"id": name, "path": str(paths[-1]), "role": "reference", "batch_key": "batch"}
            rows.append(Dataset(**given, label_key="cell_type"))
        return prepare_reference(rows, paths, settings)

    return run


def by_id(adata):
    """Ensembl ids in the index, symbols beside them."""
    adata.var["feature_name"] = list(adata.var_names)
    adata.var_names = [f"ENSG{k:011d}" for k in range(adata.n_vars)]


def test_references_by_symbol_and_by_id_are_joined(two):
    plain = two(lambda a: None)
    for change, first in ((by_id, lambda a: None), (lambda a: None, by_id)):
        found = two(change, first)
        assert found.adata.n_vars == plain.adata.n_vars == 80
        assert (found.adata.X != plain.adata.X).nnz == 0
        assert found.facts["n_genes_of_datasets"] == {"a": 80, "b": 80}
    assert list(found.adata.var["symbol"]) == list(plain.adata.var_names)


def test_references_that_share_few_genes(two):
    def some(adata):
        adata.var_names = [*adata.var_names[:10], *(f"other{k}" for k in range(70))]

    error = caught("GENES_LOW_OVERLAP", two, some)
    assert "12.5% in b" in error.found and "at least 80%" in error.expected
    assert two(some, settings=config(min_gene_overlap=0.1)).facts["n_genes_shared"] == 10


def test_a_panel_beside_a_whole_transcriptome_is_joined(two):
    found = two(lambda adata: adata[:, ::4].copy())
    assert found.adata.n_vars == 20 and found.facts["n_genes_of_datasets"] == {"a": 80, "b": 20}


def test_too_many_variable_genes_names_who_lacks_them(two):
    def half(adata):
        return adata[:, :50].copy()

    def other(adata):
        return adata[:, 10:].copy()

    settings = config(n_top_genes=60, min_gene_overlap=0.5)
    error = caught("HVG_TOO_MANY", two, half, other, settings)
    assert "a: 70, b: 50" in error.found and "shares few genes" in error.mend
    error = caught("HVG_TOO_MANY", two, lambda a: None, settings=config(n_top_genes=90))
    assert "null" in error.mend


@pytest.mark.parametrize(
    "ours, theirs",
    [("HLA-DRA", "HLA.DRA"), ("CD3D", "GRCh38_CD3D"), ("Cd3d", "CD3D"), ("MT-CO1", "mt-Co1"),
     ("CD3D", "hg19_CD3D"), ("CD3D", "GRCh38______CD3D"), ("RP11-34P13.7", "RP11-34P13-7")],
)  # fmt: skip
def test_spellings(ours, theirs):
    assert spelled_otherwise([ours, "XYZ1"], [theirs, "ABC"]) == {ours: theirs}


def aligned(reference, query, least=0.8):
    cells = anndata.AnnData(sparse.csr_matrix(np.ones((3, len(query)), np.float32)))
    cells.var_names = query
    return align(cells, reference, None, least, "q")


def test_the_error_shows_both_spellings():
    reference = [f"GENE-{k}" for k in range(50)]
    error = caught(
        "GENES_LOW_OVERLAP", aligned, reference, [g.replace("-", ".") for g in reference]
    )
    assert "GENE-0 is GENE.0 there" in error.found and "as the reference spells" in error.mend


def test_absent_genes_are_not_to_be_converted():
    reference = [f"ENSG{k:011d}" for k in range(100)]
    error = caught("GENES_LOW_OVERLAP", aligned, reference, reference[:60])
    assert "min_gene_overlap" in error.mend and "convert" not in error.mend
    other = [f"GENE{k}" for k in range(100)]
    assert "convert" in caught("GENES_LOW_OVERLAP", aligned, reference, other).mend


def test_families_that_are_missing_as_a_whole():
    symbols = [*HLA, *MT, "CD3D", "RPL3", "RPS6", "RPL10A", "RPL7", "IGKC", "IGHM", "TRAC"]
    missing = np.isin(symbols, [*HLA, *MT[1:], "RPL3", "IGKC", "IGHM", "TRAC"])
    (found,) = families_missing(symbols, missing)
    assert (found.name, found.n, found.missing) == ("HLA", 9, HLA)
    every = families_missing(symbols, np.ones(len(symbols), bool))
    assert [(f.name, f.n) for f in every] == [("HLA", 9), ("mitochondrial", 4), ("ribosomal", 4)]


@pytest.mark.parametrize(
    "symbol, family",
    [("HLA-DRA", "HLA"), ("H2-Ab1", "HLA"), ("IGHG1", "immunoglobulin"), ("Ighm", "immunoglobulin"),
     ("IGKV3-20", "immunoglobulin"), ("IGKC", "immunoglobulin"), ("TRADD", None), ("IGF1", None),
     ("IGHMBP2", None),
     ("TRAV1-2", "T-cell receptor"), ("TRBC2", "T-cell receptor"), ("TRAF1", None),
     ("mt-Nd1", "mitochondrial"), ("MTOR", None), ("RPS27A", "ribosomal"), ("RPLP0", "ribosomal"),
     ("RPS6KA1", None), ("RPTOR", None)],
)  # fmt: skip
def test_which_family(symbol, family):
    found = families_missing([symbol] * 3, np.ones(3, bool))
    assert [f.name for f in found] == ([family] if family else [])


def test_a_query_says_what_it_lacks(prepare):
    def names(adata):
        adata.var_names = [*HLA, *MT, *adata.var_names[len(HLA) + len(MT) :]]

    def spelled(adata):
        names(adata)
        adata.var_names = [name.replace("HLA-", "HLA.") for name in adata.var_names]

    from atlasmap.data.registry import Registry

    registry = Registry.of(prepare(names).adata)
    facts = prepare(spelled, role="query", registry=registry).facts
    assert facts["genes_spelled_otherwise"] == {name: name.replace("-", ".", 1) for name in HLA}
    assert facts["gene_families_missing"]["HLA"] == {"of": 9, "missing": HLA}
    first, second = gene_warnings(facts)
    assert "HLA-DPA1 is HLA.DPA1 there" in first and "9 of 9 HLA genes" in second
