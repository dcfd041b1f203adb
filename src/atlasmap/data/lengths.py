"""Gene-length normalisation for full-length protocols (Smart-seq2), whose reads grow with length.

Counts become reads × median length / length, rounded, as in scvi-tools' Tabula Muris tutorial; the
median is over the genes of the data set that have a length.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from atlasmap.data.blocks import each_block
from atlasmap.data.genes import places
from atlasmap.errors import AtlasmapError, listed


@dataclass(frozen=True)
class PerLength:
    """Length-normalised `counts` (cells × kept genes, integer values), `keep` (mask of the genes
    that have a length), and `facts` for contract.json."""

    counts: Any
    keep: np.ndarray
    facts: dict


def read_lengths(path: Path) -> pd.Series:
    """Read gene lengths in bases, indexed by gene name.

    The table has two columns, separated by spaces, tabs or commas, and no header. Raises
    GENE_LENGTHS_UNREADABLE.
    """
    if not path.is_file():
        raise unreadable(path, "no such file")
    try:
        table = pd.read_csv(
            path, sep=r"[\s,]+", engine="python", header=None, keep_default_na=False, dtype=str
        )
    except Exception as error:  # from the parser, or from decompression by file ending
        raise unreadable(path, (str(error).splitlines() or [type(error).__name__])[0]) from error
    if table.shape[1] != 2:
        raise unreadable(path, f"{table.shape[1]} columns")
    lengths = pd.to_numeric(table[1], errors="coerce")
    odd = ~(np.isfinite(lengths) & (lengths > 0))
    if odd.any():
        rows = table[odd].astype(str).agg(" ".join, axis=1)
        raise unreadable(path, f"{int(odd.sum())} rows without a positive length: {listed(rows)}")
    return pd.Series(lengths.to_numpy(float), index=table[0].str.strip("\"'"))


def unreadable(path: Path, found: str) -> AtlasmapError:
    """Return the error GENE_LENGTHS_UNREADABLE."""
    return AtlasmapError(
        "GENE_LENGTHS_UNREADABLE",
        expected="a table of gene lengths: gene name and bases in each line, no header",
        found=f"{path}: {found}",
        mend="correct `gene_lengths` in the sheet, or the table",
    )


def per_length(
    counts,
    ids: pd.Index,
    symbols: np.ndarray | None,
    lengths: pd.Series,
    name: str,
) -> PerLength:
    """Divide `counts` (cells × genes) by gene length; genes without a length are dropped.

    Lengths are looked up by gene id, or by symbol if that finds more genes. Raises
    GENE_LENGTHS_NONE.
    """
    known = {"ids": pd.Index(ids)} | ({} if symbols is None else {"symbols": pd.Index(symbols)})
    found = {kind: places(lengths.index, names) for kind, names in known.items()}
    kind = max(found, key=lambda kind: (found[kind] >= 0).sum())
    keep = found[kind] >= 0
    if not keep.any():
        raise AtlasmapError(
            "GENE_LENGTHS_NONE",
            expected=f"lengths of the genes of {name}, such as {listed(ids[:3])}",
            found=f"names such as {listed(lengths.index[:3])}",
            mend="give a table with the same kind of gene name (`gene_lengths` in the sheet)",
        )
    length = lengths.to_numpy()[found[kind][keep]]
    median = float(np.median(length))

    def divided(part: sparse.csr_matrix) -> sparse.csr_matrix:
        scaled = (part[:, keep] @ sparse.diags(median / length)).tocsr()
        scaled.data = np.rint(scaled.data).astype(np.float32)
        scaled.eliminate_zeros()
        return scaled

    facts = {
        "genes_matched": kind,
        "n_genes_without_length": int((~keep).sum()),
        "median_length": median,
    }
    return PerLength(each_block(counts, divided, int(keep.sum())), keep, facts)
