"""Pages of the audits: mapping per batch or jointly, and whether queries change the reference."""

import pandas as pd

from atlasmap.report.pages import table

WAYS = {
    "joint": "joint surgery, as people run it",
    "joint_by_batch": "the same model, asked batch by batch",
    "matched": "joint surgery, each batch as if alone",
    "updates": "matched, but as many updates as joint surgery",
    "scale": "matched, but gradients scaled by a batch's share",
    "momentum": "matched, but momentum moves absent batches",
    "all_three": "matched, but all three",
    "another_seed": "matched, but another seed",
    "inference": "joint surgery: asked at once or batch by batch",
}
COLUMNS = {
    "comparison": "what",
    "n": "cells",
    "latent_median": "latent, median",
    "latent_max": "latent, most",
    "median_in_posterior_sd": "posterior s.d., median",
    "flips": "other label",
    "confidence": "confidence",
    "macro_f1": "macro-F1",
    "ece": "calibration error",
    "n_reference": "reference cells",
    "n_query": "query cells",
    "labelled_share": "labelled share",
    "n_samples_per_label": "samples per label",
    "epochs_per_labelled_cell": "times a labelled cell is shown",
    "largest_to_smallest_label": "largest label / smallest",
}
MOST_LABELS = 25  # rows of a table


def strategies_page(by_batch: pd.DataFrame, by_label: pd.DataFrame, recommendation: str) -> str:
    """Returns the audit of strategies as Markdown, from tables of `atlasmap audit-strategies`."""
    everyone = by_batch[by_batch["batch"] == "all"].drop(columns="batch")
    everyone = everyone.assign(comparison=everyone["comparison"].map(WAYS))
    joint = by_batch[(by_batch["comparison"] == "joint") & (by_batch["batch"] != "all")]
    parts = [
        "# Per batch or joint?",
        recommendation,
        "Distances are between the latents of the same cells: the first three rows against the "
        "mapping batch by batch, the causes against matched surgery. In standard deviations of the "
        "cell's posterior one is as far as noise. Other label: share of cells. Confidence: mean "
        "change of the highest probability.",
        table(everyone, COLUMNS),
        "Matched surgery agrees to numerical accuracy; what each cause adds is what it is worth. "
        "Another, trained weights that batches share (affine batch norm elsewhere), is worth "
        "nothing: surgery here trains the columns of new batches alone.",
        "## Joint surgery, by batch",
        table(joint.drop(columns="comparison"), COLUMNS),
    ]
    if len(by_label):
        labels = by_label[by_label["comparison"] == "joint"].drop(columns="comparison")
        labels = labels.sort_values("flips", ascending=False, kind="stable")
        title = "## Joint surgery, by label"
        if len(labels) > MOST_LABELS:
            title += f" (the {MOST_LABELS} of {len(labels)} that change most)"
        parts += [title, table(labels.head(MOST_LABELS), COLUMNS)]
    return "\n\n".join(parts) + "\n"


def reference_page(scores: pd.DataFrame, trainings: dict[str, dict], answer: str) -> str:
    """Returns the audit of the reference as Markdown, from tables of `atlasmap audit-reference`."""
    validation = scores[scores["split"] == "validation"].drop(columns="split")
    everyone = validation[validation["label"] == "all"].drop(columns="label")
    named = validation[validation["label"] != "all"]
    by_label = named.pivot_table(
        index="label", columns=["training", "query"], values="accuracy", sort=False
    )
    worst = by_label.get("de_novo", by_label).min(axis=1).sort_values(kind="stable")
    by_label = by_label.loc[worst.index[:MOST_LABELS]]
    by_label.columns = [": ".join(filter(None, key)) for key in by_label.columns]
    facts = pd.DataFrame([{"query": query or "none"} | row for query, row in trainings.items()])
    facts["n_samples_per_label"] = facts["n_samples_per_label"].fillna("all")
    return "\n\n".join(
        [
            "# Does the reference's accuracy change with the query?",
            answer,
            "Of the reference's validation cells: under surgery, and trained with each query anew "
            "(de_novo).",
            table(everyone.replace({"query": {"": "none"}}), COLUMNS),
            "## What each model was trained on",
            "A classifier learns from labelled cells alone: the more cells come without a label, "
            "the fewer of its model's updates are about labels.",
            table(facts, COLUMNS),
            "## Accuracy by label (those that suffer most)",
            table(by_label.reset_index()),
        ]
    ) + "\n"  # fmt: skip
