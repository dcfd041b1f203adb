"""What the genes that a query lacks will cost, told before anything is mapped.

The query's missing genes are set to zero in reference cells that validated, which are then embedded
and named as they are with all genes: what is lost is lost by the genes alone.
"""

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.metrics import accuracy_score, recall_score

from atlasmap.bundle import Bundle, device_of
from atlasmap.data.registry import PROTEIN_NAMES, PROTEINS
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import encode


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
