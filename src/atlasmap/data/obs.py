"""Cell metadata: filter, batch, label and covariates, with checks."""

import re

import anndata
import numpy as np
import pandas as pd

from atlasmap.data.masks import kept
from atlasmap.data.sheet import Dataset, filter_invalid
from atlasmap.data.stored import check_readable
from atlasmap.errors import AtlasmapError, listed
from atlasmap.names import slug
from atlasmap.settings import DataConfig

UNLABELED_CATEGORY = DataConfig().unlabeled_category

ONTOLOGY = "label_ontology_term_id"  # as CELLxGENE's schema calls such columns
LONGEST_NAME = 200  # bytes of a batch name as a file name; file systems allow 255 with suffixes


MISSING = ("", "nan", "NaN", "<NA>", "None")  # how text columns write missing values
# Words for "no label" in label columns, without case, spaces, hyphens and underscores.
NO_LABEL = {
    "", "?", "/", ".", "na", "n/a", "#n/a", "null", "none", "missing", "unknown", "unknowns",
    "unknowncell", "unknowncells", "unkn", "unk", "unassigned", "notassigned", "notavailable",
    "notapplicable", "unlabeled", "unlabelled", "nolabel", "unannotated", "notannotated",
    "unclassified", "unclassifiable", "undetermined", "undefined", "unidentified", "unclear",
    "uncertain", "ambiguous", "tbd", "todo", "rejected", "remove", "removed",
    "excluded", "exclude", "discard", "filtered", "failed", "failedqc", "lowquality",
    "lowqualitycell", "lowqualitycells", "lowq", "lq", "poorquality", "badquality", "doublet",
    "doublets", "multiplet", "multiplets", "debris", "emptydroplet", "emptydroplets", "empty",
    "artifact", "artefact", "noise", "contamination", "contaminated", "dead", "deadcell",
    "deadcells", "dying", "junk", "trash",
}  # fmt: skip


def as_text(values: pd.Series) -> pd.Series:
    """Convert values to stripped text, empty where missing; 1, 1.0 and "1" become the same."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object).infer_objects()
    if values.dtype.kind == "f" and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    text = values.astype(object).where(values.notna(), "").astype(str).str.strip()
    return text.mask(text.isin(MISSING), "")


def column(adata: anndata.AnnData, key: str, what: str, name: str, said: str) -> pd.Series:
    """Return obs column `key` of data set `name`; raises OBS_KEY_MISSING, FILE_UNREADABLE.

    For the message: `what` the column holds, and the setting (`said`) that named the column.
    """
    check_readable(adata, f"obs/{key}", name)
    if key not in adata.obs:
        raise AtlasmapError(
            "OBS_KEY_MISSING",
            expected=f"{what} of {name} in obs column {key!r}",
            found=f"columns: {listed(adata.obs.columns, 40)}",
            mend=f"name the right column: {said}",
        )
    return adata.obs[key]


def filtered(adata: anndata.AnnData, dataset: Dataset) -> anndata.AnnData:
    """Return the cells that the sheet's obs_filter keeps.

    Raises FILTER_INVALID, FILTER_EMPTY, and CELLS_DUPLICATED if a kept cell name occurs twice.
    """
    if dataset.obs_filter:
        try:
            keep = kept(adata.obs, dataset.obs_filter)
        except ValueError as error:
            mend = f"columns are: {listed(adata.obs.columns, 40)}; quote texts"
            raise filter_invalid(dataset, error, mend) from error
        adata = adata[keep].copy()
    if adata.n_obs == 0:
        raise AtlasmapError(
            "FILTER_EMPTY",
            expected=f"cells in {dataset.id}",
            found=f"none left after obs_filter {dataset.obs_filter!r}",
            mend="correct `obs_filter` in the sheet",
        )
    twice = adata.obs_names[adata.obs_names.duplicated()].unique()
    if len(twice):
        raise AtlasmapError(
            "CELLS_DUPLICATED",
            expected="every cell name once",
            found=f"{len(twice)} names more than once in {dataset.id}: {listed(twice)}",
            mend="make them unique, e.g. by a prefix for the library",
        )
    return adata


def batches(adata: anndata.AnnData, dataset: Dataset, least: int) -> pd.Series:
    """Return the batch of each cell as text.

    Raises OBS_KEY_MISSING, FILE_UNREADABLE, BATCH_MISSING, BATCH_TOO_SMALL (fewer than `least`
    cells), BATCH_NAME_RESERVED, BATCH_NAME_TOO_LONG.
    """
    if not dataset.batch_key:
        values = pd.Series(dataset.id, index=adata.obs_names)
    else:
        said = "`batch_key` in the sheet"
        values = column(adata, dataset.batch_key, "the batch", dataset.id, said)
    text = as_text(values)
    if (text == "").any():
        raise AtlasmapError(
            "BATCH_MISSING",
            expected=f"a batch for every cell of {dataset.id}",
            found=f"{int((text == '').sum())} cells without one: "
            f"{listed(adata.obs_names[text == ''])}",
            mend=f"fill obs column {dataset.batch_key!r}, or leave these cells out "
            "(`obs_filter` in the sheet)",
        )
    check_names(text.unique(), dataset)
    sizes = text.value_counts()
    small = sizes[sizes < least]
    if len(small):
        raise AtlasmapError(
            "BATCH_TOO_SMALL",
            expected=f"at least {least} cells in every batch (data.min_cells_per_batch)",
            found=listed(f"{batch}: {n}" for batch, n in small.items()) + f" in {dataset.id}",
            mend="leave these batches out (`obs_filter` in the sheet) or merge them",
        )
    return text


def check_names(names, dataset: Dataset) -> None:
    """Raise BATCH_NAME_RESERVED for "all", BATCH_NAME_TOO_LONG for names too long for a file."""
    if "all" in names:
        raise AtlasmapError(
            "BATCH_NAME_RESERVED",
            expected="no batch called 'all', which means all batches in tables and folders",
            found=f"one in {dataset.id}",
            mend="rename it",
        )
    long = [name for name in names if len(slug(name)) > LONGEST_NAME]
    if long:
        raise AtlasmapError(
            "BATCH_NAME_TOO_LONG",
            expected=f"batch names of at most {LONGEST_NAME} bytes as file names",
            found=f"{listed(long, 2)} in {dataset.id}",
            mend="rename them",
        )


def means_none(name: str) -> bool:
    """Whether a label is a word for "no label"."""
    return re.sub(r"[\s_-]", "", name.casefold()) in NO_LABEL


def labels(values: pd.Series, config: DataConfig, name: str) -> pd.Series:
    """Return labels as text; cells without a label get the config's `unlabeled_category`.

    Raises LABEL_UNLABELED_COLLIDES if `unlabeled_category` occurs as a label without being declared
    to mean "no label", LABEL_MEANS_NONE if other labels are words for "no label" that the config
    neither declares (`unlabeled_values`) nor keeps (`keep_labels`).
    """
    text = as_text(values)
    token, none = config.unlabeled_category, config.unlabeled_values
    declared = token != UNLABELED_CATEGORY and means_none(token)
    if (text == token).any() and token not in none and not declared:
        raise AtlasmapError(
            "LABEL_UNLABELED_COLLIDES",
            expected=f"no label of {name} called {token!r}, the unlabeled_category",
            found=f"{int((text == token).sum())} cells with it",
            mend=f"if they have no label, set `unlabeled_values: [{token}]` in the config; "
            "else choose another unlabeled_category",
        )
    meant = {"", token, *none, *config.keep_labels}
    sizes = text[~text.isin(meant)].value_counts()
    odd = {word: int(n) for word, n in sizes.items() if means_none(word)}
    if odd:
        words = ", ".join(odd)
        raise AtlasmapError(
            "LABEL_MEANS_NONE",
            expected=f"types of cells as labels of {name}",
            found="words for no label: " + listed(f"{word} ({n} cells)" for word, n in odd.items()),
            mend=f"if they have no label, set unlabeled_values: [{words}] in the config; if these "
            f"are types that you want to find, keep_labels: [{words}]",
        )
    return text.mask(text.isin([*none, ""]), token)


def truths(values: pd.Series, config: DataConfig) -> pd.Series:
    """Return the true labels of query cells; words for "no label" become `unlabeled_category`."""
    text = as_text(values)
    odd = [word for word in text.unique() if means_none(word) and word not in config.keep_labels]
    return text.mask(text.isin([*config.unlabeled_values, *odd]), config.unlabeled_category)


def ontology_ids(adata: anndata.AnnData, label_key: str) -> pd.Series:
    """Return the Cell Ontology id of each cell from obs `{label_key}_ontology_term_id`; empty text
    without one."""
    key = f"{label_key}_ontology_term_id"
    return as_text(adata.obs[key]) if key in adata.obs else pd.Series("", index=adata.obs_names)


def ids_of_labels(obs: pd.DataFrame, unlabeled: str) -> dict[str, str]:
    """Map each label to the most frequent Cell Ontology id of its cells, if any has one."""
    if ONTOLOGY not in obs:
        return {}
    named = obs.loc[(obs[ONTOLOGY].astype(str) != "") & (obs["label"].astype(str) != unlabeled)]
    return {label: ids.mode()[0] for label, ids in named.astype(str).groupby("label")[ONTOLOGY]}


def covariates(adata: anndata.AnnData, config: DataConfig, name: str) -> pd.DataFrame:
    """Return the config's covariate columns: categorical ones as text, continuous ones as numbers.

    Raises OBS_KEY_MISSING, FILE_UNREADABLE, COVARIATE_MISSING_VALUES.
    """
    table = pd.DataFrame(index=adata.obs_names)
    for key in config.categorical_covariates:
        said = "`categorical_covariates` in the config"
        values = column(adata, key, "a covariate", name, said)
        table[key] = as_text(values).replace("", np.nan)
    for key in config.continuous_covariates:
        said = "`continuous_covariates` in the config"
        values = pd.to_numeric(column(adata, key, "a covariate", name, said), errors="coerce")
        table[key] = values.replace([np.inf, -np.inf], np.nan)
    gaps = [key for key in table if table[key].isna().any()]
    if gaps:
        raise AtlasmapError(
            "COVARIATE_MISSING_VALUES",
            expected=f"a value (finite where continuous) for every cell of {name}",
            found=listed(f"{key}: {int(table[key].isna().sum())} without" for key in gaps),
            mend="fill the column, or take it out of the config's covariates",
        )
    return table
