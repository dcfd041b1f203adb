"""Build the prepared reference and query batches from the sheet's files, with facts about them."""

from dataclasses import asdict, dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from atlasmap.data import proteins
from atlasmap.data.blocks import BYTES, in_blocks, is_lazy
from atlasmap.data.counts import check_cells_not_empty, checked_counts
from atlasmap.data.depth import GIVEN, keep_tree, names_within_others, to_their_depth
from atlasmap.data.genes import (
    RAW_GENES,
    Alignment,
    align,
    choose_genes,
    gene_ids,
    gene_symbols,
    named_as,
)
from atlasmap.data.label_tree import LabelTree, levels_of_columns
from atlasmap.data.lengths import per_length, read_lengths
from atlasmap.data.memory import has_room, room_for_counts
from atlasmap.data.missing_genes import families_missing, spelled_otherwise
from atlasmap.data.obs import (
    ONTOLOGY,
    batches,
    column,
    covariates,
    filtered,
    ids_of_labels,
    labels,
    ontology_ids,
    truths,
)
from atlasmap.data.ontology import Vocabulary, in_words_of, vocabulary_of
from atlasmap.data.ontology_tree import tree_of_terms
from atlasmap.data.readers import Wanted, read_any
from atlasmap.data.registry import (
    CATEGORICAL,
    CONTINUOUS,
    PROTEIN_NAMES,
    PROTEINS,
    UNLABELED,
    Registry,
    lacking,
)
from atlasmap.data.sheet import Dataset
from atlasmap.data.stored import UNREADABLE
from atlasmap.errors import AtlasmapError, listed
from atlasmap.settings import DataConfig

COPIES = 3  # copies of the counts in memory while data sets are joined and genes chosen


@dataclass(frozen=True)
class Prepared:
    """Checked cells and the facts for contract.json."""

    adata: anndata.AnnData
    facts: dict


def stay_on_disk(paths: list[Path], config: DataConfig) -> bool:
    """Whether the counts of these files are too large to be joined in memory."""
    return not has_room(paths, config.data.memory_gb, COPIES)


def settled(adata: anndata.AnnData, config: DataConfig) -> anndata.AnnData:
    """Load lazy counts, in place, if they fit in memory after cells and genes were selected."""
    if is_lazy(adata.X):
        n_stored = sum(block.nnz for block in in_blocks(adata.X))
        if COPIES * BYTES * n_stored <= room_for_counts(config.data.memory_gb):
            adata.X = adata.X.compute(scheduler="synchronous")
    return adata


def checked_dataset(
    dataset: Dataset, path: Path, config: DataConfig, *, lazily: bool = False,
    batch: str | None = None,
) -> anndata.AnnData:  # fmt: skip
    """Read and check one data set: counts, obs, genes and proteins.

    X is float32 CSR (cells × genes), or if `lazily` a dask array of such blocks. obs has `batch`,
    `dataset`, `barcode`, `label` (reference) or `truth` (query), and covariates; cells are named
    dataset:barcode, as in every output. var is indexed by gene id, with `symbol` if known. CITE-seq
    proteins are in obsm. uns has the facts `gene_lengths` if counts were divided by gene length,
    and the elements that could not be read.

    With `batch`, only this batch is returned, and only its counts are read if the format allows it
    (CSR, dense). Raises the errors of reader, filter, and of the checks.
    """
    citeseq = config.modality == "citeseq"
    wanted = Wanted(dataset.counts, lazily or batch is not None, obsm=citeseq)
    raw = filtered(read_any(path, wanted), dataset)
    if batch is not None:
        raw = raw[batches(raw, dataset, config.data.min_cells_per_batch) == batch].copy()
    how = {"corrected_float": config.counts == "corrected_float", "in_memory": not lazily}
    counts = checked_counts(raw, dataset.counts, dataset.id, **how)
    var = raw.var.copy()  # other columns are tried if too few gene ids match
    if dataset.gene_id:
        var["index"] = raw.var_names
    var.index = gene_ids(raw, dataset.gene_id, dataset.id)
    if (symbols := gene_symbols(raw)) is not None:
        var["symbol"] = symbols
    out = anndata.AnnData(counts, obs=checked_obs(raw, dataset, config), var=var)
    kept = {key: raw.uns[key] for key in (UNREADABLE,) if key in raw.uns}
    if raw.raw is not None and raw.raw.n_vars > raw.n_vars:
        kept[RAW_GENES] = list(raw.raw.var_names)
    if dataset.gene_lengths:
        lengths = read_lengths(Path(dataset.gene_lengths))
        divided = per_length(counts, var.index, symbols, lengths, dataset.id)
        among = " among genes with a length"
        check_cells_not_empty(divided.counts, raw.obs_names, dataset.id, among)
        uns = {"gene_lengths": divided.facts}
        out = anndata.AnnData(divided.counts, obs=out.obs, var=var[divided.keep], uns=uns)
    out.uns |= kept
    if citeseq:
        proteins.put(out, proteins.checked_proteins(raw, out.obs["batch"], dataset, config))
    out.obs_names = [f"{dataset.id}:{barcode}" for barcode in raw.obs_names]
    return out


def checked_obs(raw: anndata.AnnData, dataset: Dataset, config: DataConfig) -> pd.DataFrame:
    """Return obs of a data set, with the sheet's and the config's columns under standard names."""
    obs = covariates(raw, config, dataset.id)
    obs.insert(0, "batch", batches(raw, dataset, config.data.min_cells_per_batch))
    obs["dataset"], obs["barcode"] = dataset.id, raw.obs_names.to_numpy(object)
    is_reference = dataset.role == "reference"
    key = dataset.label_key if is_reference else dataset.truth_key
    if key and config.labels == "given":
        what = "label" if is_reference else "truth"
        values = column(raw, key, f"the {what}", dataset.id, f"`{what}_key` in the sheet")
        obs[what] = labels(values, config, dataset.id) if is_reference else truths(values, config)
    elif is_reference:
        obs["label"] = config.unlabeled_category
    if is_reference:
        obs[ONTOLOGY] = ontology_ids(raw, key)
    for level in config.label_levels if is_reference else []:
        said = "`label_levels` in the config"
        values = column(raw, level, "a level of the label", dataset.id, said)
        obs[level] = labels(values, config, dataset.id)
    return obs


def check_batches_apart(parts: list[anndata.AnnData], names: list[str]) -> None:
    """Raise BATCH_NAME_TWICE if two data sets share a batch name, which would merge the batches."""
    owner: dict[str, str] = {}
    for part, name in zip(parts, names, strict=True):
        for batch in part.obs["batch"].unique():
            if batch in owner:
                raise AtlasmapError(
                    "BATCH_NAME_TWICE",
                    expected="every batch in one data set",
                    found=f"batch {batch!r} in {owner[batch]} and in {name}",
                    mend="rename it in one of them, or give another batch_key",
                )
            owner[batch] = name


def join_reference(parts: list[anndata.AnnData], names: list[str], least: float) -> anndata.AnnData:
    """Concatenate data sets on their common genes, in the first one's order and names.

    `least`: minimum overlap, see `named_as`. Raises BATCH_NAME_TWICE, GENES_LOW_OVERLAP,
    PROTEINS_NO_REFERENCE, PROTEINS_NONE_SHARED.
    """
    check_batches_apart(parts, names)
    (first, _), *others = zip(parts, names, strict=True)
    parts = [first, *(named_as(first, part, name, least) for part, name in others)]
    citeseq = PROTEINS in parts[0].obsm
    panel = proteins.joined(parts) if citeseq else None
    joined = anndata.concat(parts, join="inner", merge="first")
    if citeseq:
        proteins.put(joined, panel)
    return joined


def drop_rare_labels(obs: pd.DataFrame, config: DataConfig) -> dict:
    """Set labels with fewer than data.min_cells_per_label cells to unlabelled, in place.

    With `labels: none`, all cells become unlabelled. Returns facts for contract.json. Raises
    NO_LABELS if fewer than two labels remain.
    """
    if config.labels == "none":
        obs["label"] = config.unlabeled_category
        return {"labels": "none: label transfer, its figures and label metrics are left out"}
    token = config.unlabeled_category
    sizes = obs.loc[obs["label"] != token, "label"].value_counts()
    rare = sizes[sizes < config.data.min_cells_per_label]
    obs.loc[obs["label"].isin(rare.index), "label"] = token
    kept = sizes.drop(rare.index)
    if len(kept) < 2:
        raise AtlasmapError(
            "NO_LABELS",
            expected="at least two labels in the reference with "
            f"{config.data.min_cells_per_label} cells each (data.min_cells_per_label)",
            found=listed(f"{label}: {n}" for label, n in sizes.items()),
            mend="give `label_key` in the sheet, or set `labels: none` to map without labels",
        )
    return {
        "labels": {label: int(n) for label, n in kept.sort_index().items()},
        "rare_labels_unlabelled": {label: int(n) for label, n in rare.sort_index().items()},
        "n_unlabelled": int((obs["label"] == token).sum()),
    }


def in_one_vocabulary(obs: pd.DataFrame, config: DataConfig) -> Vocabulary | None:
    """Unify labels by their Cell Ontology terms and fill in the term ids, in place.

    Returns None, and changes nothing, if most labels are no terms.
    """
    unlabeled = config.unlabeled_category
    labels = sorted(set(obs["label"].astype(str)) - {unlabeled})
    vocabulary = vocabulary_of(labels, ids_of_labels(obs, unlabeled))
    if not vocabulary.found:
        return None
    obs["label"] = obs["label"].astype(str).replace(vocabulary.renamed)
    named = obs["label"].map(vocabulary.terms).fillna("")
    obs[ONTOLOGY] = obs[ONTOLOGY].astype(str).where(obs[ONTOLOGY] != "", named)
    return vocabulary


def labels_of_reference(
    obs: pd.DataFrame, config: DataConfig, tree: LabelTree | None
) -> tuple[dict, LabelTree | None]:
    """Prepare the reference's labels, in place: unify names, drop rare labels, and set ancestor
    labels apart (see `depth`).

    The label tree is `tree`, else that of the config's label_levels, else of the Cell Ontology.
    Returns facts for contract.json and the tree that was used. Raises NO_LABELS.
    """
    if config.labels == "none":
        return drop_rare_labels(obs, config), None
    unlabeled, said = config.unlabeled_category, {}
    if tree is None and config.label_levels:
        tree = levels_of_columns(obs, config.label_levels, unlabeled).tree
    elif tree is None and (vocabulary := in_one_vocabulary(obs, config)):
        tree, said = tree_of_terms(vocabulary.terms), {"ontology": asdict(vocabulary)}
    facts = drop_rare_labels(obs, config) | said
    if tree is None:
        names = sorted(set(obs["label"].astype(str)) - {unlabeled})
        within = names_within_others(names)
        return facts | {"labels_above": {}, "labels_within_others": within}, None
    above = to_their_depth(obs, tree, unlabeled)
    facts["labels_above"] = {
        name: {"n": facts["labels"].pop(name), "below": below} for name, below in above.items()
    }
    return facts, tree


def prepare_reference(
    datasets: list[Dataset], paths: list[Path], config: DataConfig,
    queries: list[Dataset] = (), tree: LabelTree | None = None,
) -> Prepared:  # fmt: skip
    """Join all reference data sets: X counts of the selected genes, obs with batch and label.

    `paths` are the files of `datasets`, followed by those of `queries`. `queries` only take part in
    the selection of genes (data.genes_from: all). `tree` is the label tree; without one see
    `labels_of_reference`.
    """
    rows, lazily = [*datasets, *queries], stay_on_disk(paths, config)
    parts = [checked_dataset(d, p, config, lazily=lazily) for d, p in zip(rows, paths, strict=True)]
    names, n = [row.id for row in rows], len(datasets)
    least = config.data.min_gene_overlap
    joined = join_reference(parts[:n], names[:n], least)
    label_facts, tree = labels_of_reference(joined.obs, config, tree)
    everyone = join_reference(parts, names, least) if queries else joined
    sizes = {name: part.n_vars for name, part in zip(names, parts, strict=True)}
    keep, how = choose_genes(everyone, config.data, sizes)
    chosen = joined[:, everyone.var_names[keep]].copy()
    chosen.var = chosen.var[[key for key in ("symbol",) if key in chosen.var]]
    chosen = settled(chosen, config)
    check_cells_not_empty(chosen.X, chosen.obs_names, "the reference", " among the chosen genes")
    columns = (*config.categorical_covariates, *config.label_levels)
    if tree is not None and tree.parents:
        keep_tree(chosen, tree)
    columns += (GIVEN,) if GIVEN in chosen.obs else ()
    if (chosen.obs[ONTOLOGY] == "").all():
        del chosen.obs[ONTOLOGY]
    columns += (ONTOLOGY,) if ONTOLOGY in chosen.obs else ()
    for key in ("batch", "label", "dataset", *columns):
        chosen.obs[key] = pd.Categorical(chosen.obs[key].astype(str))
    chosen.uns[UNLABELED] = config.unlabeled_category
    chosen.uns[CATEGORICAL] = config.categorical_covariates
    chosen.uns[CONTINUOUS] = config.continuous_covariates
    facts = {
        "datasets": [dataset.id for dataset in datasets],
        "n_cells": chosen.n_obs,
        "n_genes": chosen.n_vars,
        "n_genes_shared": everyone.n_vars,
        "n_genes_of_datasets": sizes,
        "genes_chosen": how | {"from": names},
        "gene_lengths": {
            row.id: part.uns["gene_lengths"]
            for row, part in zip(datasets, parts[:n], strict=True)
            if "gene_lengths" in part.uns
        },
        **unreadable_in(parts[:n], names[:n]),
        "batches": {k: int(v) for k, v in chosen.obs["batch"].value_counts().sort_index().items()},
        "counts": count_facts(chosen),
    }
    if PROTEINS in chosen.obsm:
        proteins.check_somewhere(proteins.get(chosen))
        facts["panel"] = proteins.panel_facts(chosen.uns[PROTEIN_NAMES], lacking(chosen))
    return Prepared(chosen, facts | label_facts)


def why_missing(aligned: Alignment, reference: Registry) -> dict:
    """Facts about reference genes that a query lacks: other spellings, and whole gene families.

    A key is left out if there is nothing to report.
    """
    spelled = spelled_otherwise(aligned.missing, aligned.names)
    symbols = reference.symbols or reference.genes
    families = families_missing(symbols, aligned.match.at < 0)
    found = {"genes_spelled_otherwise": spelled} if spelled else {}
    if families:
        found["gene_families_missing"] = {
            family.name: {"of": family.n, "missing": family.missing} for family in families
        }
    return found


def unreadable_in(parts: list[anndata.AnnData], names: list[str]) -> dict:
    """Fact `unreadable`: elements of data sets that could not be read, with reasons; {} if all
    could."""
    found = {
        f"{name}: {element}": why
        for part, name in zip(parts, names, strict=True)
        for element, why in part.uns.get(UNREADABLE, {}).items()
    }
    return {"unreadable": found} if found else {}


def count_facts(adata: anndata.AnnData) -> dict:
    """Facts about counts: median and range of library size, fraction of non-zero entries."""
    depth, n_stored = [], 0
    for block in in_blocks(adata.X):
        depth.append(np.asarray(block.sum(1)).ravel())
        n_stored += block.nnz
    depth = np.concatenate(depth)
    return {
        "median_depth": float(np.median(depth)),
        "least_depth": float(depth.min()),
        "largest_depth": float(depth.max()),
        "share_nonzero": round(n_stored / (adata.n_obs * adata.n_vars), 4),
    }


def sizes_of_batches(dataset: Dataset, path: Path, config: DataConfig) -> dict[str, int]:
    """Return the number of cells of each batch; reads no counts if the format allows it.

    Raises the errors of `filtered` and `batches`.
    """
    wanted = Wanted(dataset.counts, lazily=True, obsm=False)
    adata = filtered(read_any(path, wanted), dataset)
    found = batches(adata, dataset, config.data.min_cells_per_batch).value_counts()
    return {str(name): int(n) for name, n in found.items()}


def prepare_query(
    whole: anndata.AnnData, dataset: Dataset, batch: str, reference: Registry, config: DataConfig
) -> Prepared:
    """Align one batch of a query to the reference's genes and proteins.

    `whole` is the result of `checked_dataset`. obs `truth` (if the sheet names a column) is used
    for scoring only. Raises QUERY_BATCH_IS_REFERENCE, GENES_*, COUNTS_EMPTY_CELLS,
    PROTEINS_NONE_SHARED.
    """
    if batch in reference.batches:
        raise AtlasmapError(
            "QUERY_BATCH_IS_REFERENCE",
            expected="query batches that are not in the reference",
            found=f"batch {batch!r} of {dataset.id} is a reference batch",
            mend="rename it, or leave it out of the query (`obs_filter` in the sheet)",
        )
    cells = whole[whole.obs["batch"] == batch].copy()
    least = config.data.min_gene_overlap
    aligned = align(cells, reference.genes, reference.symbols, least, dataset.id)
    for key in ("batch", "dataset", "truth", *config.categorical_covariates):
        if key in cells.obs:
            cells.obs[key] = pd.Categorical(cells.obs[key].astype(str))
    var = pd.DataFrame(index=pd.Index(reference.genes))
    adata = settled(anndata.AnnData(aligned.counts, obs=cells.obs, var=var), config)
    check_cells_not_empty(adata.X, adata.obs_names, batch, " among the reference's genes")
    new = reference.new_categories(adata.obs)
    facts = {
        "dataset": dataset.id,
        "new_categories": dict(zip(reference.categorical, list(new.values())[1:], strict=True)),
        "n_cells": adata.n_obs,
        "genes_matched": {
            "query": aligned.match.column or dataset.gene_id or "index",
            "reference": aligned.match.names,
        },
        "gene_overlap": round(aligned.match.overlap, 4),
        "genes_missing": aligned.missing,
        **why_missing(aligned, reference),
        "counts": count_facts(adata),
        **{key: whole.uns[key] for key in ("gene_lengths",) if key in whole.uns},
        **unreadable_in([whole], [dataset.id]),
    }
    if PROTEINS in cells.obsm:
        table, of_proteins = proteins.aligned(cells, reference.proteins, dataset.id)
        proteins.put(adata, table)
        facts |= of_proteins
    if "truth" in cells.obs:
        known = {*reference.labels, *reference.labels_above, config.unlabeled_category}
        truth = in_words_of(cells.obs["truth"].astype(str), known)
        adata.obs["truth"] = pd.Categorical(truth)
        absent = sorted(set(truth) - known)
        facts["truth_not_in_reference"] = absent
        facts["n_without_truth"] = int((truth == config.unlabeled_category).sum())
    return Prepared(adata, facts)
