"""Why does the accuracy on my reference change with the query?

Under surgery it does not: predicted labels of the reference are unchanged, bit for bit. If
reference and query are trained jointly (de novo), each query gives another model, and labelled
cells are a smaller fraction of the training data.
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
    """Reference cells: predicted labels (`soft`), true `labels` and `split`."""

    soft: SoftLabels
    labels: np.ndarray
    split: np.ndarray


def named(latent: anndata.AnnData, soft: np.ndarray | None = None) -> Named:
    """Extract the reference cells of a latent, with its soft labels or with `soft` (cells ×
    labels)."""
    if "role" in latent.obs:
        latent = latent[(latent.obs["role"] == "reference").to_numpy()]
    names = [str(name) for name in latent.uns["soft_label_names"]]
    said = np.asarray(latent.obsm["soft_labels"] if soft is None else soft, np.float64)
    labels, split = (latent.obs[key].astype(str).to_numpy() for key in ("label", "split"))
    return Named(SoftLabels(said, names), labels, split)


def scored(cells: Named, unlabeled: str) -> Iterator[tuple[str, Scored]]:
    """Yield (split, scores) for training and validation cells, if any of these are labelled."""
    for split in ("train", "validation"):
        at = cells.split == split
        soft = SoftLabels(cells.soft.probabilities[at], cells.soft.names)
        predicted, known = soft.predicted().astype(str), set(cells.soft.names)
        found = score(cells.labels[at], predicted, soft.confidence(), known, unlabeled)
        if found is not None:
            yield split, found


def scores(cells: Named, query: str, training: str, unlabeled: str) -> pd.DataFrame:
    """Table with columns query, training, split, label, n, accuracy, macro_f1 and ece: one row for
    all labels, and one per label, whose accuracy is the recall (without macro_f1 and ece)."""
    rows = []
    for split, found in scored(cells, unlabeled):
        key = {"query": query, "training": training, "split": split}
        one = found.summary.iloc[0]
        rows.append(key | {"label": "all"} | one[["n", "accuracy", "macro_f1", "ece"]].to_dict())
        for _, row in found.per_class.iterrows():
            rows.append(key | {"label": row["label"], "n": row["n"], "accuracy": row["recall"]})
    return pd.DataFrame(rows)


def confusion(cells: Named, query: str, training: str, unlabeled: str) -> pd.DataFrame:
    """Confusion matrices as a table with columns query, training, split, truth, predicted, n."""
    key = {"query": query, "training": training}
    parts = [
        found.confusion.assign(split=split, **key)[[*key, "split", *found.confusion]]
        for split, found in scored(cells, unlabeled)
    ]
    return pd.concat(parts, ignore_index=True)


def soft_labels(bundle: Bundle, cells: anndata.AnnData) -> np.ndarray:
    """Soft labels of reference cells with counts (cells × labels)."""
    return embed(bundle.model, encode(bundle.registry, cells, device_of(bundle.model))).soft_labels


def under_surgery(
    latent: anndata.AnnData, cells: anndata.AnnData, after: Bundle, before: np.ndarray
) -> Named:
    """Label the reference's cells with the model `after` surgery.

    `cells`: their counts, in the order of `latent`; `before`: their soft labels before surgery.
    Raises REFERENCE_MOVED unless both soft labels are equal bit for bit.
    """
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
    """Properties of a training that affect the classifier: fraction of labelled cells, how often
    each labelled training cell is seen, ratio of the largest to the smallest label.

    `about`: the bundle's settings.json.
    """
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
    """Answer in one or two sentences, from the rows of `scores` of all queries."""
    rows = table[(table["label"] == "all") & (table["split"] == "validation")]
    own = rows.loc[rows["training"] == "reference", "accuracy"].mean()
    de_novo = rows.loc[rows["training"] == "de_novo", "accuracy"]
    said = "Under surgery the reference's labels and probabilities are unchanged, bit for bit, "
    said += f"whatever the query (validation accuracy {own:.3f})."
    if len(de_novo):
        said += " Trained together with a query the model is another one each time: "
        said += f"{de_novo.min():.3f} to {de_novo.max():.3f}."
    return said
