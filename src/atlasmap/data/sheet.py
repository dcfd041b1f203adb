"""The sheet of data sets: one row a file, tab separated, checked against a closed schema."""

import csv
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field
from pydantic.dataclasses import dataclass

from atlasmap.config import checked
from atlasmap.errors import AtlasmapError, listed
from atlasmap.settings import CLOSED

BUILTIN = ("builtin:pbmc68k", "builtin:simulated")


@dataclass(frozen=True, config=CLOSED)
class Dataset:
    """One row of the sheet."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Short name of the data set, unique in the sheet."""
    path: Annotated[str, Field(min_length=1)]
    """File or folder (.h5ad, .h5mu, 10x .h5, mtx folder, .zarr), URL, or
    builtin:pbmc68k|simulated."""
    role: Literal["reference", "query"]
    """What the cells are for."""
    batch_key: str = ""
    """Column of obs that holds the batch; empty: the whole data set is one batch, named by id."""
    label_key: str = ""
    """Column of obs that holds the label (reference)."""
    truth_key: str = ""
    """Column of obs that holds the true label (query, optional); never shown to a model."""
    counts: str = "X"
    """Where the counts are: X, or the name of a layer."""
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
    """pandas expression over obs; only cells for which it holds are used."""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """Checksum of the file at a URL, when it is known."""

    @property
    def remote(self) -> bool:
        """Whether the file has to be fetched or made first."""
        return "://" in self.path or self.path.startswith("builtin:")

    @property
    def fetched_as(self) -> str:
        """File name once it is fetched: a URL that does not say what it gives is an .h5ad."""
        ending = Path(urlsplit(self.path).path).suffix
        return self.id + (ending if ending in (".h5", ".h5mu") else ".h5ad")


def read_sheet(path: Path, *, trained: bool = False) -> list[Dataset]:
    """Rows of the sheet; raises SHEET_* errors that name line and column.

    `trained`: the config names a trained reference, so there are only queries.
    """
    if not path.is_file():
        raise AtlasmapError(
            "SHEET_MISSING",
            expected="a sheet of data sets (config key `datasets`)",
            found=f"no file {path}",
            mend="give its path relative to the working directory or the repository",
        )
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = [line for line in file if line.strip() and not line.startswith("#")]
    if lines and "\t" not in lines[0]:
        raise AtlasmapError(
            "SHEET_COLUMNS",
            expected="columns separated by tabs",
            found=f"none in the first line of {path}: {lines[0].strip()[:100]!r}",
            mend="save it as tab-separated text",
        )
    rows = list(csv.DictReader(lines, delimiter="\t"))
    datasets = []
    for n, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise AtlasmapError(
                "SHEET_COLUMNS",
                expected=f"{len(rows[0])} tab-separated values in every row",
                found=f"row {n} of {path} has more or fewer",
                mend="separate values by tabs; leave a value empty rather than out",
            )
        given = {key.strip(): value.strip() for key, value in row.items() if value.strip()}
        datasets.append(checked(Dataset, given, f"{path}, row {n}", "SHEET"))
    check_sheet(datasets, path, trained)
    return datasets


def check_sheet(datasets: list[Dataset], path: Path, trained: bool) -> None:
    """What rows must be together."""
    ids = [dataset.id for dataset in datasets]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise AtlasmapError(
            "SHEET_ID_TWICE",
            expected="every id once",
            found=f"more than once in {path}: {listed(twice)}",
            mend="give each row an id of its own",
        )
    references = [dataset.id for dataset in datasets if dataset.role == "reference"]
    if trained and references:
        raise AtlasmapError(
            "SHEET_REFERENCE_TWICE",
            expected="query rows only, since the config names a trained reference",
            found=f"reference rows in {path}: {listed(references)}",
            mend="leave these rows out, or `reference` in the config",
        )
    if not references and not trained:
        raise AtlasmapError(
            "SHEET_NO_REFERENCE",
            expected="at least one row with role reference",
            found=f"none in {path}",
            mend="add the labelled data sets that the model is to be trained on",
        )
    odd = [d.id for d in datasets if d.role == "query" and d.label_key]
    if odd:
        raise AtlasmapError(
            "SHEET_LABEL_ON_QUERY",
            expected="label_key in reference rows only",
            found=f"one in the query rows {listed(odd)}",
            mend="call it truth_key: it is used for scoring and never shown to a model",
        )
    unknown = [d.path for d in datasets if d.path.startswith("builtin:") and d.path not in BUILTIN]
    if unknown:
        raise AtlasmapError(
            "SHEET_BUILTIN",
            expected=f"one of {listed(BUILTIN)}",
            found=listed(unknown),
            mend="correct the path",
        )
