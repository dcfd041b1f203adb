"""Why does the accuracy on my reference change with the query?

Because the model does. Under surgery the reference's labels are what they were, bit for bit; where
reference and query are trained on together (de novo), each query makes another model, and the
labelled cells are a smaller share of what it sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd

from atlasmap.bundle import Bundle, device_of
from atlasmap.errors import AtlasmapError
from atlasmap.evaluation.classification import Scored, score
from atlasmap.labels.knn import SoftLabels
from atlasmap.mapping.embed import embed
from atlasmap.mapping.encode import encode


@dataclass(frozen=True)
class Named:
    """Reference cells with what a model calls them: `soft` labels, true `labels`, `split`."""

    soft: SoftLabels
    labels: np.ndarray
    split: np.ndarray


def named(latent: anndata.AnnData, soft: np.ndarray | None = None) -> Named:
    """Of a bundle's latent (those rows that are reference cells), or with other soft labels."""
    if "role" in latent.obs:
        latent = latent[(latent.obs["role"] == "reference").to_numpy()]
    names = [str(name) for name in latent.uns["soft_label_names"]]
    said = np.asarray(latent.obsm["soft_labels"] if soft is None else soft, np.float64)
    labels, split = (latent.obs[key].astype(str).to_numpy() for key in ("label", "split"))
    return Named(SoftLabels(said, names), labels, split)


def scored(cells: Named, unlabeled: str) -> Iterator[tuple[str, Scored]]:
    """Training and validation cells' scores, where there are labelled ones."""
    for split in ("train", "validation"):
        at = cells.split == split
        soft = SoftLabels(cells.soft.probabilities[at], cells.soft.names)
        predicted, known = soft.predicted().astype(str), set(cells.soft.names)
        found = score(cells.labels[at], predicted, soft.confidence(), known, unlabeled)
        if found is not None:
            yield split, found


def scores(cells: Named, query: str, training: str, unlabeled: str) -> pd.DataFrame:
    """Rows query, training, split, label (all and each), n, accuracy (of a label: its recall),
    macro_f1, ece (all labels alone)."""
    rows = []
    for split, found in scored(cells, unlabeled):
        key = {"query": query, "training": training, "split": split}
        one = found.summary.iloc[0]
        rows.append(key | {"label": "all"} | one[["n", "accuracy", "macro_f1", "ece"]].to_dict())
        for _, row in found.per_class.iterrows():
            rows.append(key | {"label": row["label"], "n": row["n"], "accuracy": row["recall"]})
    return pd.DataFrame(rows)


def confusion(cells: Named, query: str, training: str, unlabeled: str) -> pd.DataFrame:
    """Rows query, training, split, truth, predicted, n."""
    key = {"query": query, "training": training}
    parts = [
        found.confusion.assign(split=split, **key)[[*key, "split", *found.confusion]]
        for split, found in scored(cells, unlabeled)
    ]
    return pd.concat(parts, ignore_index=True)


def soft_labels(bundle: Bundle, cells: anndata.AnnData) -> np.ndarray:
    """What a model calls reference cells with counts (cells × labels)."""
    return embed(bundle.model, encode(bundle.registry, cells, device_of(bundle.model))).soft_labels


def under_surgery(
    latent: anndata.AnnData, cells: anndata.AnnData, after: Bundle, before: np.ndarray
) -> Named:
    """Label the reference's cells (counts in `cells`, in the order of `latent`) with the model
    `after` surgery. Raises REFERENCE_MOVED unless the probabilities are those of the reference
    `before` surgery, bit for bit."""
    said = soft_labels(after, cells)
    if not np.array_equal(said, before):
        raise AtlasmapError(
            "REFERENCE_MOVED",
            expected="the reference's soft labels after surgery, bit for bit",
            found=f"a difference of {float(np.abs(said - before).max()):.2g}",
            mend="this is a bug in atlasmap: please report it with settings.json",
        )
    return named(latent, said)


def reasons(about: dict, cells: Named, n_query: int, unlabeled: str) -> dict:
    """What of a training bears on the classifier: labelled share, how often each labelled cell is
    shown to it, least cells of a label."""
    labelled = (cells.labels != unlabeled).sum()
    own = "scanvi" in about
    training = about["scanvi"]["train"] if own else about["totalvi"]["classifier"]
    n_steps = about["training" if own else "classifier"]["n_steps"]
    n_train = float(((cells.labels != unlabeled) & (cells.split == "train")).sum())
    shown = n_steps * training["batch_size"] / max(n_train, 1)
    sizes = pd.Series(cells.labels[cells.labels != unlabeled]).value_counts()
    return {
        "n_reference": len(cells.labels),
        "n_query": n_query,
        "labelled_share": float(labelled / (len(cells.labels) + n_query)),
        "n_samples_per_label": about["scanvi"]["n_samples_per_label"] if own else None,
        "epochs_per_labelled_cell": float(shown),
        "largest_to_smallest_label": float(sizes.max() / sizes.min()),
    }


def answer(table: pd.DataFrame) -> str:
    """In a sentence or two, from the rows of all queries."""
    rows = table[(table["label"] == "all") & (table["split"] == "validation")]
    own = rows.loc[rows["training"] == "reference", "accuracy"].mean()
    de_novo = rows.loc[rows["training"] == "de_novo", "accuracy"]
    said = "Under surgery the reference's labels and probabilities are unchanged, bit for bit, "
    said += f"whatever the query (validation accuracy {own:.3f})."
    if len(de_novo):
        said += " Trained together with a query the model is another one each time: "
        said += f"{de_novo.min():.3f} to {de_novo.max():.3f}."
    return said
