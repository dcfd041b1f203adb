"""The sheet of data sets: one row a file, tab separated, checked against a closed schema."""

import csv
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field
from pydantic.dataclasses import dataclass

from atlasmap.config import checked
from atlasmap.data.filters import parsed
from atlasmap.errors import AtlasmapError, listed
from atlasmap.files import check_url, read_text
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

    @property
    def remote(self) -> bool:
        """Whether the file has to be fetched or made first."""
        return "://" in self.path or self.path.startswith("builtin:")

    @property
    def fetched_as(self) -> str:
        """File name once it is fetched: a URL that does not say what it gives is an .h5ad."""
        ending = Path(urlsplit(self.path).path).suffix.lower()
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
            mend="give its path from the folder that Snakemake runs in (another one: snakemake "
            "--directory DIR …), or from the root",
        )
    header, rows = split_rows(read_text(path, "the sheet of data sets"), path)
    datasets = []
    for n, row in enumerate(rows, start=1):
        given = {key: value for key, value in zip(header, row, strict=True) if value}
        datasets.append(checked(Dataset, given, f"{path}, row {n}", "SHEET_INVALID"))
    check_sheet(datasets, path, trained)
    return datasets


def split_rows(text: str, path: Path) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and values of each row; raises SHEET_COLUMNS, SHEET_QUOTES."""
    lines = [
        line for line in re.split("\r\n|\r|\n", text) if line.strip() and not line.startswith("#")
    ]
    if not lines or "\t" not in lines[0]:
        raise AtlasmapError(
            "SHEET_COLUMNS",
            expected="columns separated by tabs",
            found=f"none in the first line of {path}: {''.join(lines[:1]).strip()[:100]!r}",
            mend="save it as tab-separated text",
        )
    header, *rows = (split_line(line, n, path) for n, line in enumerate(lines))
    named = [name for name in header if name]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise AtlasmapError(
            "SHEET_COLUMNS",
            expected="every column once",
            found=f"more than once in the first line of {path}: {listed(twice)}",
            mend="leave one of them out",
        )
    for n, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise AtlasmapError(
                "SHEET_COLUMNS",
                expected=f"{len(header)} tab-separated values in every row",
                found=f"row {n} of {path} has {len(row)}",
                mend="separate values by tabs; leave a value empty rather than out",
            )
    return header, rows


def split_line(line: str, n: int, path: Path) -> list[str]:
    """Values of a line (the first is 0), without the quotes that spreadsheets put around some."""
    try:
        (values,) = csv.reader([line], delimiter="\t", strict=True)
    except csv.Error as error:
        raise AtlasmapError(
            "SHEET_QUOTES",
            expected="values of under 131,072 characters, and a quote at the end of each that "
            "begins with one",
            found=f"{f'row {n}' if n else 'the first line'} of {path}: {error}",
            mend="take the quote out, or double quotes inside of a quoted value",
        ) from error
    return [value.strip() for value in values]


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
    for dataset in datasets:
        check_filter(dataset)
        for path in (dataset.path, dataset.gene_lengths):
            check_builtin(path)
            if "://" in path:
                check_url(path, f"data of {dataset.id}")


def check_builtin(path: str) -> None:
    """Raise SHEET_BUILTIN for a name that no builtin data set has."""
    if path.startswith("builtin:") and path not in BUILTIN:
        raise AtlasmapError(
            "SHEET_BUILTIN",
            expected=f"one of {listed(BUILTIN)}",
            found=path,
            mend="correct the name",
        )


def filter_invalid(dataset: Dataset, error: ValueError, mend: str) -> AtlasmapError:
    """FILTER_INVALID."""
    return AtlasmapError(
        "FILTER_INVALID",
        expected="comparisons of columns of obs: batch in ['a', 'b'] and n_genes >= 200",
        found=f"{dataset.obs_filter[:200]!r} for {dataset.id}: {error}",
        mend=mend,
    )


def check_filter(dataset: Dataset) -> None:
    """What can be seen of a filter before there are cells; raises FILTER_INVALID."""
    try:
        if dataset.obs_filter:
            parsed(dataset.obs_filter)
    except ValueError as error:
        raise filter_invalid(dataset, error, "correct obs_filter; quote texts") from error
