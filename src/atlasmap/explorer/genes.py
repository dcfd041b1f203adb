"""Expression of selected genes in the cells of an atlas, from its prepared counts."""

from collections.abc import Iterator
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from scipy import sparse

from atlasmap.errors import AtlasmapError, listed
from atlasmap.explorer.columns import Number

CHUNK = 20_000  # cells read at a time
N_MARKERS = 12


def normalised(path: Path) -> Iterator[tuple[pd.DataFrame, sparse.csr_matrix]]:
    """Yield obs and ln(1 + counts per 10,000), CHUNK cells at a time."""
    adata = anndata.read_h5ad(path, backed="r")
    try:
        for start in range(0, adata.n_obs, CHUNK):
            at = slice(start, min(start + CHUNK, adata.n_obs))
            counts = sparse.csr_matrix(adata.X[at], dtype=np.float32)
            depth = np.maximum(np.asarray(counts.sum(1)).ravel(), 1e-9)
            scaled = sparse.csr_matrix(sparse.diags_array(1e4 / depth) @ counts, dtype=np.float32)
            yield adata.obs.iloc[at], scaled.log1p()
    finally:
        adata.file.close()


def names_in(path: Path) -> list[str]:
    """Returns the genes of a prepared file."""
    return [str(name) for name in var_of(path).index]


def var_of(path: Path) -> pd.DataFrame:
    """Returns var of a prepared file, without reading the counts."""
    with h5py.File(path) as file:
        return read_elem(file["var"])


def symbols_in(counts: list[Path]) -> dict[str, str]:
    """Returns gene id → symbol, from files that have symbols beside ids."""
    tables = (var_of(path) for path in counts)
    return {str(gene): str(symbol) for var in tables if "symbol" in var
            for gene, symbol in var["symbol"].items()}  # fmt: skip


def places(obs: pd.DataFrame, atlas: pd.Index) -> np.ndarray:
    """Returns indices into the atlas of the cells in `obs`; −1 for cells that it lacks."""
    keys = pd.MultiIndex.from_arrays([obs["batch"].astype(str), obs.index.astype(str)])
    return atlas.get_indexer(keys)


def cells_of(atlas: pd.DataFrame) -> pd.MultiIndex:
    """Returns batch and name of each cell of an atlas, as an index."""
    return pd.MultiIndex.from_arrays([atlas["batch"].astype(str), atlas.index.astype(str)])


def markers(counts: list[Path], atlas: pd.DataFrame, labels: np.ndarray) -> list[str]:
    """Returns up to N_MARKERS marker genes; `labels`: a label code per cell of the atlas.

    A label's marker has the largest difference between its mean in the label and the mean of the
    other labels' means. Labels with the largest differences come first.
    """
    index, n_labels = cells_of(atlas), int(labels.max()) + 1
    genes = names_in(counts[0])
    sums, n = np.zeros((n_labels, len(genes))), np.zeros(n_labels)
    for path in counts:
        if names_in(path) != genes:
            continue
        for obs, logs in normalised(path):
            at = places(obs, index)
            known = at >= 0
            codes = labels[at[known]]
            each = sparse.csr_matrix(
                (np.ones(len(codes)), (codes, np.flatnonzero(known))), (n_labels, logs.shape[0])
            )
            sums += (each @ logs).toarray()
            n += np.bincount(codes, minlength=n_labels)
    means = sums[n > 0] / n[n > 0, None]
    if len(means) < 2:
        return []
    lead = means - (means.sum(0) - means) / (len(means) - 1)  # minus the mean of other labels
    best = lead.argmax(1)[np.argsort(-lead.max(1))]
    return [genes[g] for g in dict.fromkeys(best.tolist())][:N_MARKERS]


def expression(counts: list[Path], atlas: pd.DataFrame, genes: list[str]) -> list[Number]:
    """Returns ln(1 + counts per 10,000) of each gene per cell of the atlas, titled by its symbol.

    `genes`: ids or symbols. NaN where a gene was not measured. Raises EXPLORER_GENES.
    """
    index, symbols = cells_of(atlas), symbols_in(counts)
    ids = {symbol: gene for gene, symbol in symbols.items()}
    genes = [ids.get(gene, gene) for gene in genes]
    values = np.full((len(genes), len(atlas)), np.nan, np.float32)
    for path in counts:
        known = {name: k for k, name in enumerate(names_in(path))}
        here = [k for k, gene in enumerate(genes) if gene in known]
        for obs, logs in normalised(path):
            at = places(obs, index)
            found = logs[:, [known[genes[k]] for k in here]].toarray()[at >= 0]
            for column, k in enumerate(here):
                values[k, at[at >= 0]] = found[:, column]
    lost = [gene for gene, of in zip(genes, values, strict=True) if np.isnan(of).all()]
    if lost:
        raise AtlasmapError(
            "EXPLORER_GENES",
            expected="genes that the model was trained on",
            found=f"{listed(lost)}: in no prepared file",
            mend="choose others under explorer.genes, or train with more genes (data.n_top_genes)",
        )
    titles = [symbols.get(gene, gene) for gene in genes]
    return [Number.of(f"gene {t}", t, of) for t, of in zip(titles, values, strict=True)]
