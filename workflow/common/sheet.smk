# The sheet of data sets: one row per file, tab separated.

from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

BUILTIN = ("builtin:pbmc68k", "builtin:simulated")


def read_sheet(path, schema, trained=False):
    """Returns the rows of the sheet; raises SHEET_* errors that name row and column.

    `trained`: the config names a trained reference, so all rows must be queries.
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
    empty = {key: "" for key in schema["properties"]} | {"counts": "X"}
    datasets = []
    for n, row in enumerate(rows, start=1):
        given = {key: value for key, value in zip(header, row) if value}
        check_values(given, schema, f"{path}, row {n}", "SHEET_INVALID")
        datasets.append(SimpleNamespace(**empty | given))
    check_sheet(datasets, path, trained)
    return datasets


def check_sheet(datasets, path, trained):
    """Check rows against each other and the config; raises SHEET_*, FILTER_INVALID, URL_SCHEME."""
    ids = [dataset.id for dataset in datasets]
    references = [dataset.id for dataset in datasets if dataset.role == "reference"]
    odd = [
        dataset.id
        for dataset in datasets
        if dataset.role == "query" and dataset.label_key
    ]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise AtlasmapError(
            "SHEET_ID_TWICE",
            expected="every id once",
            found=f"more than once in {path}: {listed(twice)}",
            mend="give each row an id of its own",
        )
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
    if odd:
        raise AtlasmapError(
            "SHEET_LABEL_ON_QUERY",
            expected="label_key in reference rows only",
            found=f"one in the query rows {listed(odd)}",
            mend="call it truth_key: it is used for scoring and never shown to a model",
        )
    for dataset in datasets:
        check_filter(dataset)
        for named in (dataset.path, dataset.gene_lengths):
            check_source(named, f"data of {dataset.id}")


def check_filter(dataset):
    """Raise FILTER_INVALID if obs_filter cannot be parsed."""
    try:
        if dataset.obs_filter:
            parsed(dataset.obs_filter)
    except ValueError as error:
        raise AtlasmapError(
            "FILTER_INVALID",
            expected="comparisons of columns of obs: batch in ['a', 'b'] and n_genes >= 200",
            found=f"{dataset.obs_filter[:200]!r} for {dataset.id}: {error}",
            mend="correct obs_filter; quote texts",
        ) from error


def check_source(named, what):
    """Raise SHEET_BUILTIN or URL_SCHEME for a source that cannot be downloaded or simulated."""
    if named.startswith("builtin:") and named not in BUILTIN:
        raise AtlasmapError(
            "SHEET_BUILTIN",
            expected=f"one of {listed(BUILTIN)}",
            found=named,
            mend="correct the name",
        )
    if "://" in named:
        check_url(named, what)


def is_remote(path):
    """Returns whether a data set has to be downloaded or simulated first."""
    return "://" in path or path.startswith("builtin:")


def fetched_as(dataset):
    """Returns a data set's file name after download; .h5ad if the URL has no known suffix."""
    ending = Path(urlsplit(dataset.path).path).suffix.lower()
    return dataset.id + (ending if ending in (".h5", ".h5mu") else ".h5ad")
