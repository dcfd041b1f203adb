"""Protein counts of CITE-seq cells: reading, checks, and alignment of panels by protein name.

Proteins that were not measured are NaN in prepared cells, never zero; models mask them.
"""

import re

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from atlasmap.data.counts import LARGEST_EXACT, not_integer
from atlasmap.data.registry import PROTEIN_NAMES, PROTEINS
from atlasmap.data.sheet import Dataset
from atlasmap.data.stored import check_readable
from atlasmap.data.structure import NUMBERS
from atlasmap.errors import AtlasmapError, listed
from atlasmap.settings import DataConfig

USUAL = ("protein_expression", "protein_counts", "prot", "protein", "adt", "ADT")
NONE = "none"  # value of `proteins` in the sheet: these cells have no proteins
SPECIES = r"^((ra[tg]|mouse|human|hamster)[-_ .]?)?"  # "Rag" is in one published panel
ISOTYPE = re.compile(
    rf"isotype|igg\d?[a-d]?.{{0,3}}(control|ctrl)|{SPECIES}igg(?![-_ ]?fc)", re.IGNORECASE
)


def table_of(adata: anndata.AnnData, dataset: Dataset) -> pd.DataFrame:
    """Return a data set's protein counts as stored in the file (cells × proteins).

    Raises PROTEINS_MISSING, PROTEIN_NAMES_MISSING, FILE_UNREADABLE.
    """
    key = dataset.proteins or next((key for key in USUAL if key in adata.obsm), "")
    for usual in (key,) if key else USUAL:
        check_readable(adata, f"obsm/{usual}", dataset.id)
    check_readable(adata, f"uns/{dataset.protein_names}", dataset.id)
    if key not in adata.obsm:
        raise AtlasmapError(
            "PROTEINS_MISSING",
            expected=f"protein counts of {dataset.id} in obsm"
            + (f"[{key!r}]" if key else ", or Antibody Capture features of a 10x file"),
            found=f"obsm: {listed(adata.obsm)}",
            mend="name the key as `proteins` in the sheet, or write none there if these cells have "
            "no proteins",
        )
    values = adata.obsm[key]
    if isinstance(values, pd.DataFrame):
        return values.rename(columns=str)
    names = adata.uns.get(dataset.protein_names) if dataset.protein_names else None
    if names is not None and (np.ndim(names) != 1 or sparse.issparse(names)):
        names = [f"no list of names: {type(names).__name__}"]
    if names is None or len(names) != values.shape[1]:
        raise AtlasmapError(
            "PROTEIN_NAMES_MISSING",
            expected=f"names of the {values.shape[1]} columns of obsm[{key!r}] of {dataset.id}",
            found=f"uns: {listed(adata.uns)}"
            if names is None
            else f"{len(names)} names in uns[{dataset.protein_names!r}]",
            mend="name the key of uns that holds them as `protein_names` in the sheet, or store a "
            "table with named columns",
        )
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    return pd.DataFrame(dense, index=adata.obs_names, columns=[str(name) for name in names])


def checked_proteins(
    adata: anndata.AnnData, batch: pd.Series, dataset: Dataset, config: DataConfig
) -> pd.DataFrame:
    """Return a data set's protein counts (cells × proteins, float32, NaN where not measured).

    Batches in data.mask_proteins become NaN. Raises PROTEINS_* errors, PROTEIN_NAMES_MISSING,
    PROTEIN_TWICE, FILE_UNREADABLE, and PROTEIN_ALL_ZERO if a protein is zero in all cells of a
    batch and the sheet's `protein_zeros` does not say whether it was measured.
    """
    if dataset.proteins == NONE:
        return pd.DataFrame(index=adata.obs_names)
    table = table_of(adata, dataset)
    if not table.columns.is_unique:
        raise AtlasmapError(
            "PROTEIN_TWICE",
            expected=f"each protein of {dataset.id} once",
            found=listed(table.columns[table.columns.duplicated()].unique()),
            mend="give these columns names of their own",
        )
    check_values(table, dataset, corrected=config.counts == "corrected_float")
    table = table.astype(np.float32)
    zero = table.eq(0).groupby(batch.to_numpy()).all()
    if zero.to_numpy().any() and not dataset.protein_zeros:
        found = [f"{name} in batch {k}" for k, row in zero.iterrows() for name in row.index[row]]
        raise AtlasmapError(
            "PROTEIN_ALL_ZERO",
            expected=f"every protein of {dataset.id} in some cell of each batch",
            found=f"only zeros: {listed(found)}",
            mend="say what that means as `protein_zeros` in the sheet: missing (it was not "
            "measured there) or measured (no cell has it)",
        )
    if dataset.protein_zeros == "missing":
        table = table.mask(zero.loc[batch].set_axis(table.index))
    table.loc[batch.isin(config.data.mask_proteins).to_numpy()] = np.nan
    return table


def check_values(table: pd.DataFrame, dataset: Dataset, *, corrected: bool) -> None:
    """Raise PROTEINS_NAN for values that are not finite, PROTEINS_NOT_COUNTS for other non-counts.

    `corrected` admits non-integer values.
    """
    odd = [str(name) for name, kind in table.dtypes.items() if kind.kind not in NUMBERS]
    if odd:
        raise AtlasmapError(
            "PROTEINS_NOT_COUNTS",
            expected=f"a table of protein counts in {dataset.id}",
            found=f"columns that hold no numbers: {listed(odd)}",
            mend="leave these columns out of the table, or name another key as `proteins`",
        )
    values = table.to_numpy(float)
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        raise AtlasmapError(
            "PROTEINS_NAN",
            expected=f"finite protein counts in {dataset.id}",
            found=f"NaN or infinity in {int(bad.sum())} cells: {listed(table.index[bad])}",
            mend="remove these cells or restore their counts; a protein that a batch lacks is zero "
            "in all its cells, with missing as `protein_zeros` in the sheet",
        )
    too_large = values.max(initial=0) > LARGEST_EXACT
    fractional = not corrected and not_integer(values.ravel())
    if values.min(initial=0) < 0 or too_large or fractional:
        raise AtlasmapError(
            "PROTEINS_NOT_COUNTS",
            expected=f"integer protein counts of zero or more in {dataset.id}",
            found=f"values from {values.min():.4g} to {values.max():.4g}: normalised (CLR, DSB)?",
            mend="give the raw counts; if they are ambient-corrected, set counts: corrected_float",
        )


def put(adata: anndata.AnnData, table: pd.DataFrame) -> None:
    """Store a table of protein counts in prepared cells (obsm, uns), in place."""
    adata.obsm[PROTEINS] = table.to_numpy(np.float32)
    adata.uns[PROTEIN_NAMES] = list(table.columns)


def get(adata: anndata.AnnData) -> pd.DataFrame:
    """Return the protein counts that `put` stored (cells × proteins)."""
    return pd.DataFrame(
        adata.obsm[PROTEINS], index=adata.obs_names, columns=list(adata.uns[PROTEIN_NAMES])
    )


def joined(parts: list[anndata.AnnData]) -> pd.DataFrame:
    """Concatenate protein counts of data sets over the union of proteins, NaN where one is missing.

    Raises PROTEINS_NO_REFERENCE, PROTEINS_NONE_SHARED.
    """
    tables = [get(part) for part in parts]
    check_panels(tables, parts)
    names = list(dict.fromkeys(name for table in tables for name in table))
    values = np.concatenate([table.reindex(columns=names).to_numpy() for table in tables])
    return pd.DataFrame(values, columns=names)


def check_panels(tables: list[pd.DataFrame], parts: list[anndata.AnnData]) -> None:
    """Raise PROTEINS_NO_REFERENCE if no data set has proteins, PROTEINS_NONE_SHARED if the panel
    of one has no protein in common with the others."""
    ids = [str(part.obs["dataset"].iloc[0]) for part in parts]
    having = {name: table for name, table in zip(ids, tables, strict=True) if len(table.columns)}
    if not having:
        raise AtlasmapError(
            "PROTEINS_NO_REFERENCE",
            expected="a reference data set with proteins",
            found=f"none in {listed(ids)}",
            mend="name where they are (`proteins` in the sheet), or set modality: rna",
        )
    for name, table in having.items():
        others = {p for other, t in having.items() if other != name for p in t}
        if others and not others & set(table):
            raise AtlasmapError(
                "PROTEINS_NONE_SHARED",
                expected=f"proteins that other data sets have, too: {listed(sorted(others))}",
                found=f"{name} has {listed(table.columns)}",
                mend="spell them alike (suffixes such as _TotalSeqB count)",
            )


def check_somewhere(table: pd.DataFrame) -> None:
    """Raise PROTEIN_NOWHERE if a protein was measured in no cell of the reference."""
    nowhere = [name for name in table if table[name].isna().all()]
    if nowhere:
        raise AtlasmapError(
            "PROTEIN_NOWHERE",
            expected="every protein measured in some reference batch",
            found=f"in none: {listed(nowhere)}",
            mend="mask fewer batches (data.mask_proteins), or drop these proteins from the files",
        )


def aligned(adata: anndata.AnnData, proteins: list[str], name: str) -> tuple[pd.DataFrame, dict]:
    """Return a query's counts of the reference's `proteins` (NaN where missing), and overlap facts.

    Raises PROTEINS_NONE_SHARED if the query has a panel, but none of the reference's proteins.
    """
    table = get(adata)
    shared = [protein for protein in proteins if protein in table]
    if len(table.columns) and not shared:
        raise AtlasmapError(
            "PROTEINS_NONE_SHARED",
            expected=f"proteins of the reference: {listed(proteins)}",
            found=f"{name} has {listed(table.columns)}",
            mend="spell them alike (suffixes such as _TotalSeqB count), or write none as "
            "`proteins` in the sheet to map the cells by their genes",
        )
    out = table.reindex(columns=proteins)
    return out, {
        "n_proteins": len(shared),
        "proteins_missing": [name for name in proteins if out[name].isna().all()],
        "proteins_not_in_reference": [name for name in table if name not in set(proteins)],
    }


def panel_facts(proteins: list[str], missing: dict[str, list[str]]) -> dict:
    """Facts of the reference's panel for contract.json.

    `missing`: batch → proteins that were not measured in it.
    """
    return {
        "proteins": proteins,
        "isotype_controls": [name for name in proteins if ISOTYPE.search(name)],
        "proteins_missing": missing,
    }
