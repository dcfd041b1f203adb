"""Genes: ids, selection of highly variable genes, and alignment of a query to a reference."""

import logging
import re
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from atlasmap.data.blocks import each_block, is_lazy
from atlasmap.data.missing_genes import spelled_otherwise
from atlasmap.data.stored import check_readable
from atlasmap.data.variable import variable_genes
from atlasmap.errors import AtlasmapError, listed
from atlasmap.settings import DataSettings

log = logging.getLogger("atlasmap")
VERSIONED = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+$")
SYMBOLS = ("feature_name", "gene_symbol", "gene_symbols", "gene_name", "gene_names", "symbol")
RAW_GENES = "_genes_of_raw"  # uns key: genes of raw, if it has more than the matrix that was used
FEW = 0.2  # fraction of the reference's genes; below it, the query uses other gene names
SPANS = (0.3, 0.5, 0.8, 1.0)  # loess spans, tried in turn; small batches need a wider one


def without_versions(names: pd.Index) -> pd.Index:
    """Remove version suffixes (`.N`) of Ensembl ids, unless two genes would get the same id."""
    stripped = pd.Index([VERSIONED.sub(r"\1", str(name)) for name in names])
    return stripped if stripped.is_unique else pd.Index(names.astype(str))


def gene_ids(adata: anndata.AnnData, column: str, name: str) -> pd.Index:
    """Return gene ids from a column of var, or from the index if `column` is empty.

    Raises GENES_COLUMN_MISSING, GENES_DUPLICATED, FILE_UNREADABLE.
    """
    check_readable(adata, f"var/{column}", name)
    if column and column not in adata.var:
        raise AtlasmapError(
            "GENES_COLUMN_MISSING",
            expected=f"gene ids of {name} in var column {column!r}",
            found=f"columns: {listed(adata.var.columns)}",
            mend="correct `gene_id` in the sheet, or leave it empty for the index",
        )
    ids = pd.Index(adata.var[column]) if column else adata.var_names
    twice = ids[ids.duplicated()].unique()
    if len(twice):
        raise AtlasmapError(
            "GENES_DUPLICATED",
            expected="every gene once",
            found=f"{len(twice)} names more than once in {name}: {listed(twice)}",
            mend="use unique ids (`gene_id` in the sheet), or sum the duplicates' counts",
        )
    return without_versions(ids)


def gene_symbols(adata: anndata.AnnData) -> np.ndarray | None:
    """Return gene symbols from the first column of SYMBOLS that var has; None without one."""
    for column in SYMBOLS:
        if column in adata.var:
            return adata.var[column].astype(str).to_numpy()
    return None


def choose_genes(
    reference: anndata.AnnData, settings: DataSettings, sizes: dict[str, int]
) -> tuple[np.ndarray, dict]:
    """Select highly variable genes (seurat_v3 per batch): their mask, and how they were chosen.

    `sizes`: number of genes of each data set, for the message. Raises HVG_TOO_MANY if n_top_genes
    exceeds the number of genes, HVG_FAILED if no loess fit succeeds.
    """
    n = settings.n_top_genes
    if n is not None and n > reference.n_vars:
        of_each = listed(f"{name}: {size}" for name, size in sizes.items())
        raise AtlasmapError(
            "HVG_TOO_MANY",
            expected=f"data.n_top_genes ≤ {reference.n_vars}, the genes all data sets share",
            found=f"data.n_top_genes: {n}; genes of each data set: {of_each}",
            mend="lower it, or set it to null to keep all genes"
            if min(sizes.values()) == reference.n_vars
            else "leave out the data set that shares few genes with the others, or take it from "
            "before genes were filtered; or lower data.n_top_genes",
        )
    if n is None or n == reference.n_vars:
        return np.ones(reference.n_vars, bool), {"flavor": "all"}
    for span in SPANS:
        try:
            keep = seurat_v3(reference, n, span)
        except ValueError as error:
            log.warning("seurat_v3 with span %s failed (%s); trying a wider one", span, error)
            continue
        return keep, {"flavor": "seurat_v3", "span": span}
    raise AtlasmapError(
        "HVG_FAILED",
        expected="a loess fit of variance on mean in every reference batch",
        found=f"none with spans {listed(SPANS)}",
        mend="leave very small batches out, or set data.n_top_genes to null",
    )


def seurat_v3(reference: anndata.AnnData, n: int, span: float) -> np.ndarray:
    """Mask of `n` highly variable genes, ranked per batch; raises ValueError if loess fails."""
    if is_lazy(reference.X):
        return variable_genes(reference.X, reference.obs["batch"], n, span)
    import scanpy

    table = scanpy.pp.highly_variable_genes(
        reference, n_top_genes=n, flavor="seurat_v3", batch_key="batch",
        span=span, check_values=False, inplace=False,
    )  # fmt: skip
    return table["highly_variable"].to_numpy()


@dataclass(frozen=True)
class Match:
    """How the genes of a query match those of the reference.

    `column`: the query's var column that was matched (empty: the index); `names`: the reference's
    names that were matched (`ids` or `symbols`); `at`: index of each reference gene in the query
    (−1: absent).
    """

    column: str
    names: str
    at: np.ndarray

    @property
    def overlap(self) -> float:
        """Fraction of the reference's genes that the query has."""
        return float((self.at >= 0).mean())


@dataclass(frozen=True)
class Alignment:
    """Counts in the reference's gene order (cells × genes, CSR or lazy; missing genes are zero),
    how the genes were matched, the missing reference genes, and the query's gene names in the
    column that was matched."""

    counts: Any
    match: Match
    missing: list[str]
    names: pd.Index


def places(names: pd.Index, wanted: pd.Index) -> np.ndarray:
    """Index of each of `wanted` in `names`; −1 if it is absent, or duplicated on either side."""
    names, wanted = without_versions(names), without_versions(wanted)
    once = ~names.duplicated(keep=False)
    at = pd.Series(np.flatnonzero(once), index=names[once]).reindex(wanted).to_numpy()
    return np.where(np.isnan(at) | wanted.duplicated(keep=False), -1, at).astype(np.int64)


def best_match(
    adata: anndata.AnnData, genes: list[str], symbols: list[str] | None, least: float
) -> Match:
    """Match gene ids to the reference's ids; if the overlap is below `least`, try other names.

    Then the best pair is used of index or non-numeric column of the query's var, and ids or symbols
    of the reference.
    """
    references = {"ids": pd.Index(genes)} | ({"symbols": pd.Index(symbols)} if symbols else {})
    columns = {"": adata.var_names} | {
        column: pd.Index(adata.var[column].astype(str))
        for column in adata.var
        if adata.var[column].dtype.kind not in "fiub"
    }
    plain = Match("", "ids", places(columns[""], references["ids"]))
    if plain.overlap >= least:
        return plain
    others = [
        Match(column, names, places(values, wanted))
        for column, values in columns.items()
        for names, wanted in references.items()
    ]
    return max(others, key=lambda match: match.overlap)


def named_as(
    first: anndata.AnnData, other: anndata.AnnData, name: str, least: float
) -> anndata.AnnData:
    """Rename the genes of another reference data set to the ids of the `first` one.

    Needed where one has ids and the other symbols; genes that do not match are then dropped. Raises
    GENES_LOW_OVERLAP if the two share less than the fraction `least` of the smaller one's genes.
    """
    genes, symbols = first.var_names, first.var.get("symbol")
    match = best_match(other, list(genes), None if symbols is None else list(symbols), least)
    found = match.at >= 0
    share = found.sum() / min(len(genes), other.n_vars)
    if share < least or not found.any():
        raise low_overlap(other, match, genes, least, name, share)
    if not match.column and match.names == "ids":
        return other
    out = other[:, match.at[found]].copy()
    out.var_names = genes[found]
    return out


def names_of(adata: anndata.AnnData, match: Match) -> pd.Index:
    """Return the query's gene names in the column that was matched."""
    return pd.Index(adata.var[match.column].astype(str)) if match.column else adata.var_names


def low_overlap(
    adata: anndata.AnnData, match: Match, genes: pd.Index, least: float, name: str, share: float
) -> AtlasmapError:
    """Return GENES_LOW_OVERLAP, with a `mend` that fits the cause.

    Causes: the genes are in raw, are spelled otherwise, are absent, or have another kind of name.
    """
    missing = [str(gene) for gene in genes[match.at < 0]]
    spelled = spelled_otherwise(missing, names_of(adata, match))
    found = f"{share:.1%} in {name} at best ({match.column or 'its ids'} against the reference's "
    found += f"{match.names}); missing: {listed(missing)}"
    raw = adata.uns.get(RAW_GENES, [])
    if len(set(raw) & set(missing)) > len(missing) / 2:
        mend = f"its raw has {len(raw)} genes, these among them: name raw as `counts` in the sheet"
    elif len(spelled) > len(missing) / 2:
        pairs = listed(f"{ours} is {theirs} there" for ours, theirs in spelled.items())
        found += f"; spelled otherwise: {len(spelled)} ({pairs})"
        mend = "rename its genes as the reference spells them"
    elif match.overlap > FEW:
        mend = (
            "the ids are right, these genes are not in the file: take it from before genes were "
            "filtered; or accept fewer by `data.min_gene_overlap` in the config"
        )
    else:
        mend = "convert the gene ids, or name a column of var as `gene_id` in the sheet"
    return AtlasmapError(
        "GENES_LOW_OVERLAP",
        expected=f"at least {least:.0%} of the reference's {len(genes)} genes "
        "(data.min_gene_overlap)",
        found=found,
        mend=mend,
    )


def align(
    adata: anndata.AnnData, genes: list[str], symbols: list[str] | None, least: float, name: str
) -> Alignment:
    """Reorder the columns of X to the reference's `genes`; missing genes become zero.

    Genes are matched by id, or by the pair of names with the largest overlap. Raises
    GENES_LOW_OVERLAP if the overlap is below `least`.
    """
    match = best_match(adata, genes, symbols, least)
    found = match.at >= 0
    missing = [gene for gene, there in zip(genes, found, strict=True) if not there]
    if match.overlap < least:
        raise low_overlap(adata, match, pd.Index(genes), least, name, match.overlap)
    place = sparse.csr_matrix(
        (np.ones(found.sum(), np.float32), (match.at[found], np.flatnonzero(found))),
        shape=(adata.n_vars, len(genes)),
    )

    def placed(counts: sparse.csr_matrix) -> sparse.csr_matrix:
        out = (counts @ place).tocsr()
        out.sort_indices()
        return out

    counts = each_block(adata.X, placed, len(genes))
    return Alignment(counts, match, missing, names_of(adata, match))
