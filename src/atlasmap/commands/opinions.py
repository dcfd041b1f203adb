"""Commands for second opinions on labels, and for the accuracy that missing genes cost."""

import json
from pathlib import Path
from typing import Any

import anndata
import pandas as pd

from atlasmap.commands.parameters import Latents, Prepared, ReferenceLatent
from atlasmap.files import write_table, written_aside
from atlasmap.names import unslug
from atlasmap.settings import TransferSettings


def second_opinions(
    *latents: Latents,
    reference_latent: ReferenceLatent,
    queries: Prepared,
    opinions: Path,
    seconds: Path,
    bundle: Path | None = None,
    seed: int = 0,
    transfer: TransferSettings = TransferSettings(),
) -> None:
    """Label query cells by kNN, random forest and logistic regression on the latent, by logistic
    regression on genes, and by the majority of all.

    Example: atlasmap second-opinions latent.h5ad --reference_latent b.h5ad --queries q.h5ad
    --opinions o.parquet --seconds s.csv

    Parameters
    ----------
    opinions
        File to write (.parquet): one row per query cell.
    seconds
        File to write (.csv): seconds that each method took. The workflow keeps it with the logs,
        because it differs between runs.
    bundle
        The reference's bundle, with calibration.json and profiles.npz. With it, the regression on
        genes is added, and the majority weighs each method as learned from held-out cells.
    seed
        Seed of the random forest.
    transfer
        Settings of the kNN transfer.
    """
    from atlasmap.data.depth import set_apart, tree_in
    from atlasmap.data.registry import unlabeled_in
    from atlasmap.evaluation.opinions import knn_by_k, second_opinions
    from atlasmap.mapping.given import read_reference
    from atlasmap.mapping.latent import latent_of

    reference = read_reference(reference_latent)
    unlabeled = unlabeled_in(reference)
    trust = trust_of(bundle, queries)
    labels = reference.obs["label"].astype(str).to_numpy()
    known = labels != unlabeled
    z, labels = latent_of(reference)[known], labels[known]
    query = anndata.concat([anndata.read_h5ad(path) for path in latents], uns_merge="same")
    how = trust, transfer.n_neighbors, seed, unlabeled
    table, took = second_opinions(z, labels, query, *how)
    by_k = knn_by_k(z, labels, latent_of(query)).add_prefix("knn_k")
    table = pd.concat([of_cells(query, queries, unlabeled), table, by_k], axis=1)
    if "truth" in table:
        above = tree_in(reference).labels_below(list(set(labels)))
        set_apart(table, "truth", above, unlabeled)
    with written_aside(opinions) as aside:
        table.to_parquet(aside, index=False)
    with written_aside(seconds) as aside:
        pd.Series(took, name="seconds").rename_axis("method").to_csv(aside)


def trust_of(bundle: Path | None, queries: list[Path]) -> Any:
    """Load the reference's calibration, to be applied to the prepared query batches (.h5ad); None
    without a bundle."""
    if bundle is None:
        return None
    from atlasmap.api import trust_in
    from atlasmap.bundle import load
    from atlasmap.device import pick_device

    of_batch = {unslug(path.stem): path for path in queries}
    model = load(bundle, pick_device("cpu"))
    return trust_in(bundle, model, lambda batch: anndata.read_h5ad(of_batch[batch]))


def of_cells(query: anndata.AnnData, queries: list[Path], unlabeled: str) -> pd.DataFrame:
    """Table of mapped cells: cell_id, batch and, if any true label is known, truth."""
    from atlasmap.labels.gathered import read_truth

    batch, truth = query.obs["batch"].astype(str).to_numpy(), read_truth(queries)
    table = pd.DataFrame({"cell_id": query.obs_names, "batch": batch})
    if truth is not None:
        found = truth.reindex(pd.MultiIndex.from_arrays([batch, query.obs_names]))
        table["truth"] = found.fillna(unlabeled).to_numpy()
    return table


def gene_gap(
    *queries: Path,
    bundle: Path,
    reference: Path,
    out: Path,
) -> None:
    """Estimate, before mapping, how much accuracy the genes missing from query batches will cost.

    Example: atlasmap gene-gap donor1.json --bundle scanvi_fixed --reference reference.h5ad --out
    gene_gap.csv

    Parameters
    ----------
    queries
        Facts of prepared query batches (.json), with the names of their missing genes.
    bundle
        The reference's bundle, with reference_latent.h5ad.
    reference
        The prepared reference, with counts (.h5ad).
    out
        File to write (.csv): one row per query batch and label.
    """
    from atlasmap.bundle import load
    from atlasmap.device import pick_device
    from atlasmap.evaluation.gene_gap import gene_gap
    from atlasmap.mapping.given import read_latent

    loaded, split = load(bundle, pick_device("cpu")), read_latent(bundle).obs["split"]
    cells = anndata.read_h5ad(reference)
    validated = (split == "validation").reindex(cells.obs_names).to_numpy(bool)
    if validated.any():  # without validation cells (train_size 1), take all cells
        cells = cells[validated].copy()
    found: dict[tuple[str, ...], pd.DataFrame] = {}  # batches of a data set lack the same genes
    tables = []
    for path in queries:
        facts = json.loads(path.read_text(encoding="utf-8"))
        missing = tuple(map(tuple, (facts["genes_missing"], facts.get("proteins_missing", ()))))
        if missing not in found:
            found[missing] = gene_gap(loaded, cells, *map(list, missing))
        tables.append(found[missing].assign(batch=unslug(path.stem)))
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "batch", table.pop("batch"))
    write_table(out, table)
    worst = table[table["label"] == "all"].sort_values("loss").iloc[-1]
    missing = f"{worst['n_genes_missing']} genes"
    if "n_proteins_missing" in worst:
        missing += f", {worst['n_proteins_missing']} proteins"
    print(
        f"{len(queries)} batches; most is lost in {worst['batch']}: {missing} missing, "
        f"accuracy {worst['with_all_genes']:.3f} → {worst['without_missing']:.3f}"
    )
