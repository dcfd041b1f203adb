"""What the genes that a query lacks will cost, told before anything is mapped.

The query's missing genes are set to zero in reference cells that validated, which are then embedded
and named as they are with all genes: what is lost is lost by the genes alone.
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
    """The same cells without counts of the genes in `missing`, and with these `proteins` not
    measured; cells left empty get one count, of the first gene there is, as a library of nothing
    has no logarithm."""
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
    """Labelled cells of a reference whose counts are not at hand (some of many): counts drawn from
    the decoder at the posterior means and library sizes of its `latent`."""
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
    """Add to the families of genes that a query lacks (contract.json's `gene_families_missing`)
    what each `costs`: accuracy lost on cells drawn from the model. In place."""
    registry = bundle.registry
    named = dict(zip(registry.symbols or registry.genes, registry.genes, strict=True))
    cells = drawn_cells(bundle, latent)
    for family in families.values():
        table = gene_gap(bundle, cells, [named[name] for name in family["missing"]])
        family["costs"] = round(float(table["loss"].iloc[0]), 4)


def predicted(bundle: Bundle, cells: anndata.AnnData) -> np.ndarray:
    """Labels that the classifier gives."""
    said = embed(bundle.model, encode(bundle.registry, cells, device_of(bundle.model)))
    return np.asarray(bundle.registry.labels, object)[said.soft_labels.argmax(1)]


def gene_gap(
    bundle: Bundle, cells: anndata.AnnData, missing: list[str], proteins: list[str] = ()
) -> pd.DataFrame:
    """Expected loss of accuracy, all labels and each: label, n, n_genes_missing, accuracy and
    recall with all genes and without, loss. For CITE-seq the query's missing `proteins` count too
    (n_proteins_missing).

    `cells` are labelled reference cells that the model was not trained on, with counts.
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
