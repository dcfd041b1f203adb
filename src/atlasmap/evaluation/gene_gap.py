"""Accuracy lost through genes that a query lacks, estimated before anything is mapped.

The query's missing genes are set to zero in labelled reference cells that the model was not trained
on. Their labels are then predicted with and without these genes, so only the genes differ.
"""

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.metrics import accuracy_score, recall_score

from atlasmap.bundle import Bundle, device_of
from atlasmap.data.registry import PROTEIN_NAMES, PROTEINS
from atlasmap.evaluation.criticism import CHUNK, draw
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import encode
from atlasmap.mapping.latent import LIBRARY, latent_of
from atlasmap.models.random import keyed_seed
from atlasmap.models.surgery import vae_of

N_DRAWN = 2000  # cells


def masked(cells: anndata.AnnData, missing: list[str], proteins: list[str] = ()) -> anndata.AnnData:
    """Return the cells without counts of the genes in `missing`, and with `proteins` not measured
    (NaN).

    Cells left without counts get one count of the first remaining gene, because the logarithm of
    their library size must be finite.
    """
    keep = ~np.asarray(cells.var_names.isin(missing))
    counts = (cells.X @ sparse.diags_array(keep.astype(np.float32))).tocsr()
    counts.eliminate_zeros()
    empty = np.asarray(counts.sum(1)).ravel() == 0
    if empty.any() and keep.any():
        one = sparse.csr_matrix(
            (np.ones(empty.sum()), (np.flatnonzero(empty), np.full(empty.sum(), keep.argmax()))),
            counts.shape,
        )
        counts = (counts + one).tocsr()
    out = anndata.AnnData(counts.astype(np.float32), cells.obs.copy(), cells.var.copy())
    if PROTEINS in cells.obsm:
        out.uns[PROTEIN_NAMES] = names = list(cells.uns[PROTEIN_NAMES])
        absent = np.isin(names, list(proteins))
        out.obsm[PROTEINS] = np.where(absent, np.nan, cells.obsm[PROTEINS]).astype(np.float32)
    return out


@torch.no_grad()
def drawn_cells(bundle: Bundle, latent: anndata.AnnData, most: int = N_DRAWN) -> anndata.AnnData:
    """Simulate at most `most` labelled cells of a reference whose counts are not available.

    Counts are sampled from the decoder at the posterior means and library sizes in `latent`.
    """
    labelled = np.flatnonzero(latent.obs["label"].isin(bundle.registry.labels))
    rng = np.random.default_rng(keyed_seed(0, "gene gap"))
    at = np.sort(rng.permutation(labelled)[:most])
    out, device = latent[at].copy(), device_of(bundle.model)
    z = torch.tensor(latent_of(out), dtype=torch.float32, device=device)
    library = torch.tensor(out.obs[LIBRARY].to_numpy(np.float32), device=device).log()[:, None]
    cells, first, counts = encode(bundle.registry, out, device), 0, []
    for chunk in cells.in_order(CHUNK):
        rows = slice(first, first := first + len(chunk.codes[0]))
        px = vae_of(bundle.model).generative(z[rows], library[rows], chunk, None)
        counts.append(sparse.csr_matrix(draw(px, rng), dtype=np.float32))
    out.X = sparse.vstack(counts).tocsr()
    return out


def family_costs(bundle: Bundle, latent: anndata.AnnData, families: dict[str, dict]) -> None:
    """Add to each gene family that a query lacks (`gene_families_missing` of contract.json) what it
    `costs`: the accuracy lost on simulated cells. In place."""
    registry = bundle.registry
    named = dict(zip(registry.symbols or registry.genes, registry.genes, strict=True))
    cells = drawn_cells(bundle, latent)
    for family in families.values():
        table = gene_gap(bundle, cells, [named[name] for name in family["missing"]])
        family["costs"] = round(float(table["loss"].iloc[0]), 4)


def predicted(bundle: Bundle, cells: anndata.AnnData) -> np.ndarray:
    """Labels predicted by the classifier."""
    said = embed(bundle.model, encode(bundle.registry, cells, device_of(bundle.model)))
    return np.asarray(bundle.registry.labels, object)[said.soft_labels.argmax(1)]


def gene_gap(
    bundle: Bundle, cells: anndata.AnnData, missing: list[str], proteins: list[str] = ()
) -> pd.DataFrame:
    """Expected loss of accuracy (all labels) and of recall (each label) without the genes in
    `missing` and, for CITE-seq, without `proteins`.

    Columns: label, n, n_genes_missing, n_proteins_missing (CITE-seq), with_all_genes,
    without_missing, loss. `cells` are labelled reference cells with counts that the model was not
    trained on.
    """
    truth = cells.obs["label"].astype(str).to_numpy()
    known = np.isin(truth, bundle.registry.labels)
    cells, truth = cells[known].copy(), truth[known]
    before = predicted(bundle, cells)
    gap = len(missing) + len(proteins)
    after = predicted(bundle, masked(cells, missing, proteins)) if gap else before
    names = sorted(set(truth))
    scores = [
        [accuracy_score(truth, said),
         *recall_score(truth, said, labels=names, average=None, zero_division=0)]
        for said in (before, after)
    ]  # fmt: skip
    table = pd.DataFrame(
        {
            "label": ["all", *names],
            "n": [len(truth), *(int((truth == name).sum()) for name in names)],
            "n_genes_missing": len(missing),
            **({"n_proteins_missing": len(proteins)} if bundle.registry.proteins else {}),
            "with_all_genes": scores[0],
            "without_missing": scores[1],
        }
    )
    return table.assign(loss=table["with_all_genes"] - table["without_missing"])
