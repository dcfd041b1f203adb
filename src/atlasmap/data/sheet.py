"""A row of the sheet of data sets, as the workflow passes it to commands."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from atlasmap.errors import AtlasmapError, listed
from atlasmap.settings import CLOSED

BUILTIN = ("builtin:pbmc68k", "builtin:simulated")


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Columns:
    """Where things are in a file."""

    batch_key: str = ""
    """Column of obs that holds the batch; empty: the whole data set is one batch, named by id."""
    counts: str = "X"
    """Where the counts are: X, the name of a layer, or raw (raw.X, with the genes of raw)."""
    gene_id: str = ""
    """Column of var that holds the gene id; empty: the index."""
    gene_lengths: str = ""
    """Table (file or URL) of gene names and lengths in bases: counts of a full-length protocol such
    as Smart-seq2 are divided by them. Empty: counts stay as they are."""
    proteins: str = ""
    """CITE-seq: key of obsm (or modality of an .h5mu) with protein counts; empty: a usual one, or
    Antibody Capture features of a 10x file; none: these cells have no proteins."""
    protein_names: str = ""
    """Key of uns with the names of the proteins, where obsm holds a bare array."""
    protein_zeros: Literal["", "missing", "measured"] = ""
    """What a protein is that is zero in all cells of a batch: missing (not measured there) or
    measured (no cell has it). Empty: such a protein is an error."""
    obs_filter: str = ""
    """Comparisons of columns of obs, as in `batch in ['a', 'b'] and n_genes >= 200`; only cells for
    which they hold are used."""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Dataset(Columns):
    """One row of the sheet."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Short name of the data set, unique in the sheet."""
    path: Annotated[str, Field(min_length=1)]
    """File or folder (.h5ad, .h5mu, 10x .h5, mtx folder, .zarr), URL, or
    builtin:pbmc68k|simulated."""
    role: Literal["reference", "query"]
    """What the cells are for."""
    label_key: str = ""
    """Column of obs that holds the label (reference)."""
    truth_key: str = ""
    """Column of obs that holds the true label (query, optional); never shown to a model."""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """Checksum of the file at a URL, when it is known."""


def check_builtin(path: str) -> None:
    """Raise SHEET_BUILTIN for an unknown builtin data set."""
    if path.startswith("builtin:") and path not in BUILTIN:
        raise AtlasmapError(
            "SHEET_BUILTIN",
            expected=f"one of {listed(BUILTIN)}",
            found=path,
            mend="correct the name",
        )


def filter_invalid(dataset: Dataset, error: ValueError, mend: str) -> AtlasmapError:
    """Return the error FILTER_INVALID."""
    return AtlasmapError(
        "FILTER_INVALID",
        expected="comparisons of columns of obs: batch in ['a', 'b'] and n_genes >= 200",
        found=f"{dataset.obs_filter[:200]!r} for {dataset.id}: {error}",
        mend=mend,
    )
