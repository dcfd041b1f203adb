"""Full-length counts: what length does to them, and that dividing by it undoes that."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from atlasmap.commands.data import prepare_reference as prepare_command
from atlasmap.data.lengths import per_length, read_lengths
from atlasmap.data.prepare import checked_dataset, prepare_query, prepare_reference
from atlasmap.data.registry import Registry
from atlasmap.data.sheet import Dataset
from atlasmap.errors import AtlasmapError
from atlasmap.settings import DataConfig, DataSettings

NO_CHOICE = DataConfig(data=DataSettings(n_top_genes=None))


def table(path, lengths: pd.Series):
    lengths.to_csv(path, sep=" ", header=False)
    return path


@pytest.fixture
def lengths():
    names = [f"Gene{k}" for k in range(300)]
    return pd.Series(np.random.default_rng(1).lognormal(7.5, 0.8, 300).round(2), index=names)


@pytest.fixture
def technologies(lengths, rng):
    """The same cells by a full-length protocol (reads grow with length) and by counting molecules:
    (full length, molecules), each cells × genes."""
    mean = rng.gamma(0.7, 4.0, len(lengths)) * rng.gamma(5.0, 0.2, (400, 1))
    by_length = lengths.to_numpy() / lengths.median()
    return tuple(
        anndata.AnnData(
            sparse.csr_matrix(rng.poisson(m), dtype=np.float32),
            obs=pd.DataFrame(
                {"label": np.tile(["a", "b"], 200)}, index=[f"{tech}{k}" for k in range(400)]
            ),
            var=pd.DataFrame(index=lengths.index),
        )
        for tech, m in (("full", mean * by_length * 3), ("molecules", mean))
    )


def slope(full, molecules, lengths) -> float:
    """By how much the ratio of two technologies' gene means grows with length (log on log)."""
    means = [np.asarray(x.mean(0)).ravel() for x in (full, molecules)]
    seen = np.logical_and(*[m > 0.5 for m in means])
    ratio = np.log(means[0][seen] / means[1][seen])
    return float(stats.linregress(np.log(lengths.to_numpy()[seen]), ratio).slope)


def test_the_bias_of_length_is_there_and_is_removed(technologies, lengths):
    full, molecules = technologies
    assert slope(full.X, molecules.X, lengths) == pytest.approx(1, abs=0.05)
    divided = per_length(full.X, full.var_names, None, lengths, "full")
    assert divided.keep.all()
    assert slope(divided.counts, molecules.X, lengths) == pytest.approx(0, abs=0.05)


def test_counts_are_whole_and_what_the_formula_says(technologies, lengths):
    full, _ = technologies
    shuffled = lengths.sample(frac=1, random_state=0)  # aligned by name, not by place
    divided = per_length(full.X, full.var_names, None, shuffled, "full")
    expected = np.rint(full.X.toarray() * np.median(lengths) / lengths.to_numpy())
    assert (divided.counts.toarray() == expected).all()
    assert divided.counts.dtype == np.float32 and (divided.counts.data > 0).all()


def test_genes_without_a_length_are_dropped_and_counted(technologies, lengths):
    full, _ = technologies
    some = lengths.iloc[50:]
    divided = per_length(full.X, full.var_names, None, some, "full")
    assert divided.facts["n_genes_without_length"] == 50 and divided.counts.shape[1] == 250
    assert divided.facts["median_length"] == np.median(some) and not divided.keep[:50].any()


def test_symbols_are_looked_up_where_ids_are_not_found(technologies, lengths):
    full, _ = technologies
    ids = pd.Index([f"ENSMUSG{k:011d}" for k in range(300)])
    divided = per_length(full.X, ids, full.var_names.to_numpy(), lengths, "full")
    assert divided.facts["genes_matched"] == "symbols" and divided.keep.all()


@pytest.mark.parametrize(
    "text, found",
    [
        ("A 10 1\nB 20 2\n", "3 columns"),
        ("A 10\nB zero\n", "B zero"),
        ("A 10\nB -3\n", "without a positive length"),
        ("A 10\nB\n", "B"),
        ("", "No columns"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, text, found):
    (tmp_path / "lengths.txt").write_text(text)
    with pytest.raises(AtlasmapError, match="GENE_LENGTHS_UNREADABLE") as error:
        read_lengths(tmp_path / "lengths.txt")
    assert found in str(error.value)


def test_a_gene_called_na_keeps_its_name(tmp_path):
    (tmp_path / "lengths.txt").write_text("NA 10\nnull\t20\nB,30\n")
    assert list(read_lengths(tmp_path / "lengths.txt").index) == ["NA", "null", "B"]


def test_names_of_another_kind_are_refused(technologies, lengths):
    full, _ = technologies
    other = lengths.rename(lambda name: name.upper() + "x")
    with pytest.raises(AtlasmapError, match="GENE_LENGTHS_NONE"):
        per_length(full.X, full.var_names, None, other, "full")


@pytest.fixture
def sheet(technologies, lengths, tmp_path):
    """A full-length reference and a query of molecules with 40 genes fewer, and their rows."""
    full, molecules = technologies
    full.write_h5ad(tmp_path / "full.h5ad")
    molecules[:, :260].write_h5ad(tmp_path / "molecules.h5ad")
    of = str(table(tmp_path / "lengths.txt", lengths.iloc[10:]))
    return (
        Dataset(id="full", path=str(tmp_path / "full.h5ad"), role="reference", label_key="label",
                gene_lengths=of),
        Dataset(id="molecules", path=str(tmp_path / "molecules.h5ad"), role="query"),
    )  # fmt: skip


def test_the_contract_says_what_was_divided(sheet):
    reference, _ = sheet
    prepared = prepare_reference([reference], [reference.path], NO_CHOICE)
    assert prepared.facts["gene_lengths"]["full"]["n_genes_without_length"] == 10
    assert prepared.adata.n_vars == 290
    registry = Registry.of(prepared.adata)
    again = Dataset(**(vars(reference) | {"role": "query", "label_key": "", "id": "again"}))
    facts = prepare_query(
        checked_dataset(again, again.path, NO_CHOICE), again, "again", registry, NO_CHOICE
    ).facts
    assert facts["gene_lengths"] == prepared.facts["gene_lengths"]["full"]


def test_genes_may_be_chosen_from_the_query_too(sheet, tmp_path):
    reference, query = sheet
    config = DataConfig(data=DataSettings(n_top_genes=60, genes_from="all"))
    paths = [reference.path, query.path]
    alone = prepare_reference([reference], paths[:1], config)
    both = prepare_reference([reference], paths, config, [query])
    assert both.facts["n_genes_shared"] == 250 and alone.facts["n_genes_shared"] == 290
    assert both.facts["genes_chosen"]["from"] == ["full", "molecules"]
    assert both.adata.n_obs == 400 and both.adata.n_vars == 60
    there = set(anndata.read_h5ad(query.path).var_names)
    assert set(both.adata.var_names) <= there and not set(alone.adata.var_names) <= there
    # by technology, as scanpy has it
    import scanpy

    whole = anndata.concat(
        [checked_dataset(row, row.path, config) for row in (reference, query)], join="inner"
    )
    scanpy.pp.highly_variable_genes(
        whole, n_top_genes=60, flavor="seurat_v3", batch_key="batch", span=0.3
    )
    assert set(both.adata.var_names) == set(whole.var_names[whole.var["highly_variable"]])
    prepare_command(
        *paths, datasets=[reference], queries=[query], config=config,
        out=tmp_path / "reference.h5ad", facts=tmp_path / "facts.json",
    )  # fmt: skip
    assert json.loads((tmp_path / "facts.json").read_text())["n_genes"] == 60
