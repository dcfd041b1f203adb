"""Cells' metadata: filter, batch, label, covariates, each checked."""

import re

import anndata
import numpy as np
import pandas as pd

from atlasmap.data.masks import kept
from atlasmap.data.sheet import Dataset, filter_invalid
from atlasmap.data.stored import check_readable
from atlasmap.errors import AtlasmapError, listed
from atlasmap.files import slug
from atlasmap.settings import DataConfig

UNLABELED_CATEGORY = DataConfig().unlabeled_category

ONTOLOGY = "label_ontology_term_id"  # as CELLxGENE's schema calls such columns
LONGEST_NAME = 200  # of a batch as a file name; file systems allow 255 with our endings


MISSING = ("", "nan", "NaN", "<NA>", "None")  # what text columns hold where there was no value
# Words (without case, spaces, hyphens, underscores) that stand in label columns for: no label.
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
    """Values as stripped text, empty where missing; 1, 1.0 and "1" are the same."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object).infer_objects()
    if values.dtype.kind == "f" and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    text = values.astype(object).where(values.notna(), "").astype(str).str.strip()
    return text.mask(text.isin(MISSING), "")


def column(adata: anndata.AnnData, key: str, what: str, name: str, said: str) -> pd.Series:
    """A column of obs, which somebody `said` to be `what`; raises OBS_KEY_MISSING naming those
    there are, FILE_UNREADABLE."""
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
    """Cells for which the sheet's expression holds; raises FILTER_* and CELLS_DUPLICATED."""
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
    """Batch of each cell as a string; raises BATCH_* errors."""
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
    """Names that no folder can have, or that mean all batches: BATCH_NAME_RESERVED, _TOO_LONG."""
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
    """Whether a label reads like no label at all."""
    return re.sub(r"[\s_-]", "", name.casefold()) in NO_LABEL


def labels(values: pd.Series, config: DataConfig, name: str) -> pd.Series:
    """Labels as strings, cells without one called `unlabeled_category`.

    Raises LABEL_UNLABELED_COLLIDES if that name is itself a label and not declared to mean none,
    LABEL_MEANS_NONE if other labels read as if they did.
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
    """Known labels of query cells; a word for no label is none."""
    text = as_text(values)
    odd = [word for word in text.unique() if means_none(word) and word not in config.keep_labels]
    return text.mask(text.isin([*config.unlabeled_values, *odd]), config.unlabeled_category)


def ontology_ids(adata: anndata.AnnData, label_key: str) -> pd.Series:
    """Cell-type ontology ids beside the labels (`{label_key}_ontology_term_id`); empty where there
    are none."""
    key = f"{label_key}_ontology_term_id"
    return as_text(adata.obs[key]) if key in adata.obs else pd.Series("", index=adata.obs_names)


def ids_of_labels(obs: pd.DataFrame, unlabeled: str) -> dict[str, str]:
    """The cell-type ontology id of each label: the one that most of its cells have."""
    if ONTOLOGY not in obs:
        return {}
    named = obs.loc[(obs[ONTOLOGY].astype(str) != "") & (obs["label"].astype(str) != unlabeled)]
    return {label: ids.mode()[0] for label, ids in named.astype(str).groupby("label")[ONTOLOGY]}


def covariates(adata: anndata.AnnData, config: DataConfig, name: str) -> pd.DataFrame:
    """Covariate columns of the config; raises COVARIATE_MISSING_VALUES."""
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
