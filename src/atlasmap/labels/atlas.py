"""The atlas: reference and query cells in one latent space, with labels and UMAP but no counts."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from atlasmap.data.depth import GIVEN, given_in, set_apart, tree_in
from atlasmap.data.label_tree import (
    LabelTree,
    Levels,
    levels_of_columns,
    levels_of_tree,
    rolled_up,
)
from atlasmap.data.obs import as_text, column, ids_of_labels
from atlasmap.data.registry import PROTEIN_NAMES, UNLABELED, unlabeled_in
from atlasmap.errors import AtlasmapError, listed
from atlasmap.labels.knn import (
    Nearest,
    Neighbors,
    SoftLabels,
    label_table,
    soft_labels_of,
    votes,
    weighted,
    weighted_neighbors,
)
from atlasmap.labels.palette import GREY, PALETTE, ROLES, VERDICTS, colors_of, colors_of_labels
from atlasmap.labels.umap import FittedMap, place
from atlasmap.labels.verdict import Trust, Weighed, verdicts
from atlasmap.mapping.denoise import OF_PROTEINS
from atlasmap.mapping.latent import latent_of
from atlasmap.settings import TransferSettings

LABELS = ("label", "predicted_label", "pooled_label", "safe_label", "genes_label", "knn_label",
          "runner_up", "truth")  # fmt: skip
BESIDE = ["barcode", "dataset", "batch"]
ID, NO_ID = "ontology_term_id", "unknown"  # as CELLxGENE's schema says


@dataclass(frozen=True)
class Named:
    """Label tables of query cells; the fields are those of `Atlas`."""

    labels: pd.DataFrame
    soft_labels: pd.DataFrame
    calibrated: pd.DataFrame | None = None
    shifts: pd.DataFrame | None = None

    @classmethod
    def together(cls, parts: list["Named"]) -> "Named":
        """Concatenate the tables of several mappings; a table that the first one lacks is None."""
        tables = ([getattr(part, key) for part in parts] for key in cls.__dataclass_fields__)
        return cls(*(None if of[0] is None else pd.concat(of) for of in tables))


@dataclass(frozen=True)
class Atlas:
    """An atlas and its label tables.

    `adata`: obs batch, role, label, predicted_label …; obsm X_latent, X_umap, and for CITE-seq
    denoised proteins and foreground probabilities (columns in uns protein_names). `labels`,
    `soft_labels` (None without labels) and `calibrated` (None without a calibration): one row per
    query cell. `shifts` (None without a calibration): one row per query batch and label.
    """

    adata: anndata.AnnData
    labels: pd.DataFrame | None = None
    soft_labels: pd.DataFrame | None = None
    calibrated: pd.DataFrame | None = None
    shifts: pd.DataFrame | None = None


def knn_labels(
    reference: anndata.AnnData, query: anndata.AnnData, levels: list[str], unlabeled: str,
    n_neighbors: int, nearest: Nearest,
) -> Iterator[tuple[str, SoftLabels]]:  # fmt: skip
    """Yield each label column in `levels` with the query's soft labels there, by weighted kNN.

    Neighbours are the nearest reference cells that have a label in that column; `nearest` are the
    nearest among all reference cells. Raises OBS_KEY_MISSING.
    """
    all_of_them = np.ones(reference.n_obs, bool).tobytes()
    # Cached by mask, as most columns have the same labelled cells.
    found: dict[bytes, Neighbors] = {all_of_them: weighted(nearest.first(n_neighbors))}
    for level in levels:
        said = "`label_levels` in the config"
        labels = as_text(column(reference, level, "a label", "the reference", said)).to_numpy()
        known = (labels != unlabeled) & (labels != "")
        if known.tobytes() not in found:
            latents = reference.obsm["X_latent"][known], query.obsm["X_latent"]
            found[known.tobytes()] = weighted_neighbors(*latents, n_neighbors)
        yield level, votes(found[known.tobytes()], labels[known])


def query_labels(
    reference: anndata.AnnData, query: anndata.AnnData, levels: list[str], unlabeled: str,
    settings: TransferSettings, trust: Trust | None, coarse: Levels | None = None,
    nearest: Nearest | None = None,
) -> Named:  # fmt: skip
    """Return the label tables of a mapping's query cells.

    `levels`: further label columns for kNN; `coarse`: levels at which the classifier's
    probabilities are summed; `nearest`: nearest among all reference cells, if already computed.
    """
    latents = reference.obsm["X_latent"], query.obsm["X_latent"]
    nearest = nearest or Nearest.of(*latents, settings.n_neighbors)
    soft = soft_labels_of(query)
    table = beside(query, label_table(soft, query.obs_names))
    columns = ["label", *levels]
    how = unlabeled, settings.n_neighbors, nearest
    for level, knn in knn_labels(reference, query, columns, *how):
        table[f"knn_{level}"] = knn.predicted()
        table["knn_uncertainty" if level == "label" else f"knn_{level}_uncertainty"] = (
            1 - knn.confidence()
        )
    calibrated = shifts = None
    if trust:
        found = by_batch(trust, query, latents[0], coarse.tree if coarse else None)
        with_columns(table, found.cells)
        calibrated = by_cell(SoftLabels(found.probabilities, soft.names), query)
        shifts = found.shifts
    for level, to in (coarse.groups if coarse else {}).items():
        at_level(table, soft, calibrated, level, to)
    return Named(table, by_cell(soft, query), calibrated, shifts)


def by_batch(
    trust: Trust, query: anndata.AnnData, reference: np.ndarray, tree: LabelTree | None
) -> Weighed:
    """Run `verdicts` on each batch of a mapping; rows of cells stay in the order of the query."""
    batch = query.obs["batch"].astype(str).to_numpy()
    at = [np.flatnonzero(batch == name) for name in np.unique(batch)]
    found = [verdicts(trust, query[own], reference, tree) for own in at]
    order = np.argsort(np.concatenate(at))
    return Weighed(
        pd.concat([part.cells for part in found]).iloc[order],
        np.concatenate([part.probabilities for part in found])[order],
        pd.concat([part.shifts for part in found]),
    )


def at_level(
    table: pd.DataFrame, soft: SoftLabels, calibrated: pd.DataFrame | None, level: str,
    to: dict[str, str],
) -> None:  # fmt: skip
    """Add columns for a coarser level (`to`: label → group) to `table`, in place.

    Probabilities are summed per group. Columns: predicted_{level} and confidence_{level}; with
    `calibrated` also calibrated_confidence_{level} (of the predicted group), pooled_{level} and
    pooled_confidence_{level}.
    """
    to = {name: to.get(name, name) for name in soft.names}
    coarse = SoftLabels(*rolled_up(soft.probabilities, soft.names, to))
    predicted = coarse.predicted().astype(str)
    table[f"predicted_{level}"], table[f"confidence_{level}"] = predicted, coarse.confidence()
    if calibrated is not None:
        p, names = rolled_up(calibrated[soft.names].to_numpy(), soft.names, to)
        place = {name: k for k, name in enumerate(names)}
        at = [place[name] for name in predicted]
        table[f"calibrated_confidence_{level}"] = p[np.arange(len(p)), at]
        table[f"pooled_{level}"] = np.array(names, object)[p.argmax(1)]
        table[f"pooled_confidence_{level}"] = p.max(1)


def by_cell(soft: SoftLabels, query: anndata.AnnData) -> pd.DataFrame:
    """Table of soft labels as it is written: one row per cell, after the columns of `beside`."""
    return beside(query, soft.frame(query.obs_names))


def beside(query: anndata.AnnData, table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of query cells with index cell_id and, before its own columns, barcode (the
    cell's name in the input file), dataset and batch."""
    names = query.obs.reindex(columns=BESIDE).astype(object)
    return pd.concat([names, table], axis=1).rename_axis(index="cell_id")


def with_columns(obs: pd.DataFrame, table: pd.DataFrame) -> None:
    """Add a table's columns to `obs` by position, since cells of several batches may share a name;
    in place."""
    for key in table:
        obs[key] = table[key].to_numpy()


def with_truth(query: anndata.AnnData, truth: pd.Series, unlabeled: str) -> None:
    """Add obs `truth`, in place; cells of batches without any truth are `unlabeled`.

    `truth` is indexed by batch and cell name. Raises CELLS_DIFFER if a cell of a batch with truth
    is not in it.
    """
    batch = query.obs["batch"].astype(str)
    found = truth.reindex(pd.MultiIndex.from_arrays([batch, query.obs_names])).to_numpy()
    lost = pd.isna(found) & batch.isin(truth.index.get_level_values(0)).to_numpy()
    if lost.any():
        raise AtlasmapError(
            "CELLS_DIFFER",
            expected="every mapped cell among the prepared query's cells",
            found=f"{int(lost.sum())} are not: {listed(query.obs_names[lost])}",
            mend="map these batches again",
        )
    query.obs["truth"] = np.where(pd.isna(found), unlabeled, found)


def with_cell_ids(reference: anndata.AnnData) -> None:
    """Name cells dataset:barcode, in place, if the reference was not prepared by atlasmap."""
    if "barcode" in reference.obs:
        return
    names = reference.obs_names.to_numpy(object)
    if "dataset" not in reference.obs:
        reference.obs["dataset"] = "reference"
    reference.obs["barcode"] = names
    reference.obs_names = reference.obs["dataset"].astype(str) + ":" + names


def check_ids(names: pd.Index) -> None:
    """Check that no cell id occurs twice in an atlas; raises CELLS_DUPLICATED."""
    twice = names[names.duplicated()].unique()
    if len(twice):
        raise AtlasmapError(
            "CELLS_DUPLICATED",
            expected="every cell id (dataset:barcode) once in reference and query together",
            found=f"{len(twice)} more than once: {listed(twice)}",
            mend="give the query's row an `id` in the sheet that the reference does not have",
        )


def shared_neighbors(
    fitted: FittedMap, reference: anndata.AnnData, query: anndata.AnnData,
    settings: TransferSettings,
) -> Nearest | None:  # fmt: skip
    """Nearest reference cells of each query cell, for both UMAP and labels; None if UMAP was fitted
    on a sample of the reference."""
    latent = reference.obsm["X_latent"]
    if not np.array_equal(fitted.latent, latent):
        return None
    n_neighbors = max(settings.n_neighbors, fitted.n_neighbors)
    return Nearest.of(latent, query.obsm["X_latent"], n_neighbors)


def positions(fitted: FittedMap, latent: anndata.AnnData, nearest: Nearest | None) -> np.ndarray:
    """UMAP positions (cells × 2), each batch placed by itself (joint mappings hold several)."""
    out = np.empty((latent.n_obs, 2), np.float32)
    batches = latent.obs["batch"].astype(str).to_numpy()
    for batch in np.unique(batches):
        own = batches == batch
        of_own = None if nearest is None else nearest.only(own)
        out[own] = place(fitted, latent.obsm["X_latent"][own], of_own)
    return out


def in_latent_space(reference: anndata.AnnData, columns: list[str]) -> anndata.AnnData:
    """Reference in the form of a mapped query: no genes, obsm X_latent (and soft labels and
    proteins, if it has them), and the obs `columns` that it has."""
    kept = {
        key: reference.obsm[key] for key in ("soft_labels", *OF_PROTEINS) if key in reference.obsm
    }
    return anndata.AnnData(
        obs=reference.obs[[key for key in reference.obs if key in columns]].copy(),
        obsm={"X_latent": latent_of(reference), **kept},
        uns=dict(reference.uns),
    )


def assemble(
    reference: anndata.AnnData, queries: list[anndata.AnnData], truth: pd.Series | None,
    fitted: FittedMap, settings: TransferSettings, levels: list[str],
    trust: Trust | None = None, coarser: Levels | None = None,
) -> Atlas:  # fmt: skip
    """Build the atlas from the reference and the mapped queries.

    `truth` (indexed by batch and cell name) is copied into obs and used only for scoring and
    colouring. `levels` are further label columns of the reference, which kNN transfers. The
    classifier's probabilities are summed at the levels in `coarser`; without it, at those of
    `levels` that are coarser than the labels, or else at the levels of the reference's label tree.
    Raises OBS_KEY_MISSING, CELLS_DIFFER, CELLS_DUPLICATED.
    """
    parts, tables, unlabeled = [], [], unlabeled_in(reference)
    coarse = coarser or levels_of(reference, levels, unlabeled)
    above = labels_above(reference, coarse)
    shared = [key for query in queries for key in query.obs]
    named = reference_labels(reference, trust, coarse)
    ids = ids_of_labels(reference.obs, unlabeled)
    reference = in_latent_space(reference, ["label", GIVEN, "split", *levels, *shared])
    with_cell_ids(reference)
    reference.obs["role"] = "reference"
    reference.obsm["X_umap"] = place(fitted, reference.obsm["X_latent"])
    classified = named is not None
    if truth is not None:
        reference.obs["truth"] = reference.obs["label"].astype(str)
        for query in queries:
            with_truth(query, truth, unlabeled)
            set_apart(query.obs, "truth", above, unlabeled)
    if classified:
        with_columns(reference.obs, named)
        with_levels(reference, "label", coarse, unlabeled)
    for query in queries:
        with_levels(query, "truth", coarse, unlabeled)
    for query in queries:
        query.obs["role"], query.obs["label"], query.obs["split"] = "query", unlabeled, "query"
        nearest = shared_neighbors(fitted, reference, query, settings)
        query.obsm["X_umap"] = positions(fitted, query, nearest)
        if classified:
            how = unlabeled, settings, trust, coarse, nearest
            made = query_labels(reference, query, levels, *how)
            with_columns(query.obs, made.labels.drop(columns=BESIDE))
            tables.append(made)
        parts.append(query)
    proteins = [key for key in OF_PROTEINS if all(key in part.obsm for part in (reference, *parts))]
    for part in (reference, *parts):
        tidy_obs(part.obs, unlabeled)
        part.obsm = {key: part.obsm[key] for key in ("X_latent", "X_umap", *proteins)}
    whole = anndata.concat([reference, *parts], join="outer")
    whole.uns[UNLABELED] = unlabeled
    if proteins:
        whole.uns[PROTEIN_NAMES] = reference.uns[PROTEIN_NAMES]
    whole.X = sparse.csr_matrix(whole.shape, dtype=np.float32)  # cellxgene requires an X
    check_ids(whole.obs_names)
    with_ids(whole.obs, ids)
    tidy_obs(whole.obs, unlabeled)
    with_colors(whole, unlabeled)
    return Atlas(whole, **vars(Named.together(tables))) if tables else Atlas(whole)


def with_ids(obs: pd.DataFrame, ids: dict[str, str]) -> None:
    """Add ontology term ids of labels and predicted labels, in place; nothing if `ids` is empty."""
    for key in LABELS[:2] if ids else ():
        if key in obs:
            obs[f"{key}_{ID}"] = [ids.get(name, NO_ID) for name in obs[key]]


def with_colors(whole: anndata.AnnData, unlabeled: str) -> None:
    """Store colours of labels, batches, roles and verdicts under scanpy's keys (uns `{key}_colors`,
    one colour per category), in place. A label has the same colour in all columns."""
    obs = whole.obs
    of_labels = [key for key in LABELS if key in obs]
    names = {name for key in of_labels[:2] for name in obs[key].cat.categories}
    colors = colors_of_labels(names, unlabeled)
    others = sorted({name for key in of_labels for name in obs[key].cat.categories} - set(colors))
    more = PALETTE[len(colors) % len(PALETTE) :] + PALETTE
    colors |= dict(zip(others, itertools.cycle(more), strict=False))
    named = dict.fromkeys(of_labels, colors) | {"role": ROLES, "verdict": VERDICTS}
    named["batch"] = colors_of(list(obs["batch"].cat.categories))
    for key in sorted(named.keys() & set(obs)):
        of_key = [named[key].get(name, GREY) for name in obs[key].cat.categories]
        whole.uns[f"{key}_colors"] = np.array(of_key, dtype=object)


def levels_of(reference: anndata.AnnData, columns: list[str], unlabeled: str) -> Levels | None:
    """Coarser levels of the reference's labels, from obs `columns` or else from its label tree;
    None if it has neither."""
    there = [column for column in columns if column in reference.obs]
    if there:
        return levels_of_columns(reference.obs, there, unlabeled)
    tree, names = tree_in(reference), reference.uns.get("soft_label_names", [])
    return levels_of_tree(tree, [str(name) for name in names]) if tree.parents else None


def labels_above(reference: anndata.AnnData, coarse: Levels | None) -> set[str]:
    """Ancestors of the classifier's labels."""
    labels = [str(name) for name in reference.uns.get("soft_label_names", [])]
    return set(coarse.tree.labels_below(labels)) if coarse else set()


def with_levels(part: anndata.AnnData, key: str, coarse: Levels | None, unlabeled: str) -> None:
    """Add obs {key}_{level} for each coarser level, in place, if obs has `key`.

    A label without a group is its own group. A cell whose original label is an ancestor of groups
    of a level is unlabelled at that level.
    """
    if coarse is None or key not in part.obs:
        return
    own, given = part.obs[key].astype(str), given_in(part.obs, key)
    for level, to in coarse.groups.items():
        group, vague = given.map(lambda name, to=to: to.get(name, name)), coarse.vague(level)
        part.obs[f"{key}_{level}"] = group.mask((own == unlabeled) & group.isin(vague), unlabeled)


def reference_labels(
    reference: anndata.AnnData, trust: Trust | None, coarse: Levels | None
) -> pd.DataFrame | None:
    """The classifier's labels and confidence for the reference's own cells, at all levels; None
    without a classifier."""
    if "soft_labels" not in reference.obsm:
        return None
    soft = soft_labels_of(reference)
    table = label_table(soft, reference.obs_names)
    if trust:
        table["verdict"], table["shifted"] = "reference", False
    for level, to in (coarse.groups if coarse else {}).items():
        at_level(table, soft, None, level, to)
    return table


def tidy_obs(obs: pd.DataFrame, unlabeled: str) -> None:
    """Convert text columns to categories, with `unlabeled` for missing values, which other readers
    cannot handle; in place."""
    for key in obs:
        if key != "barcode" and obs[key].dtype.kind not in "fiub":
            obs[key] = pd.Categorical(obs[key].astype(object).fillna(unlabeled).astype(str))
    obs.rename_axis(index="cell_id", inplace=True)
