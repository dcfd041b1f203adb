"""Notices: findings of a run that somebody should look at, with reasons."""

from collections.abc import Iterator
from dataclasses import dataclass

from atlasmap.data.contract import left_out
from atlasmap.report.found import Found
from atlasmap.report.pages import number
from atlasmap.settings import CalibrationSettings

# Thresholds below or above which a notice is given.
FEW_GENES = 0.9  # fraction of the model's genes in a batch
MANY_AMBIGUOUS = 0.4  # fraction of a batch's cells
MANY_NOVEL = 2  # multiple of the fraction expected by chance
HARDLY = 0.1  # displacement, in posterior standard deviations
SHIFTED = 0.2  # fraction of a batch's cells with a label
BELOW = 0.05  # coverage or accuracy below the requested value
LEAST = 20  # cells
BATCHES = "batches held out"  # as in labels.calibrated, whose import would load torch
COST = 0.02  # loss of accuracy
POOR = 0.8  # accuracy on the reference's validation cells


@dataclass(frozen=True)
class Notice:
    """A finding to look at: `where` (a batch, a label, the model) and `why`."""

    where: str
    why: str


def of_fit(found: Found) -> Iterator[Notice]:
    """Yield notices on batches that the reference does not fit, or with many doubtful cells."""
    chance = found.learned.get("false_novel", CalibrationSettings.false_novel)
    for row in found.of_final("fitness").to_dict("records"):
        where = f"batch {row['batch']}"
        if row["reference"] in ("doubtful", "does not fit"):
            why = f"the reference fits: {row['reference']}" if row["reference"] == "doubtful" else (
                "the reference does not fit it: none of its labels is to be believed")  # fmt: skip
            yield Notice(where, f"{why} (strangeness {number(row['strangeness'])}; 1 is as far as "
                         "cells of a label that the reference lacks)")  # fmt: skip
        if row["novel"] > MANY_NOVEL * chance and row["novel"] * row["n"] >= LEAST:
            named = named_so(found, row["batch"])
            yield Notice(where, f"{row['novel']:.0%} of its cells are called novel, where "
                         f"{chance:.0%} would be by chance{named}: look whether they are a type "
                         "that the reference lacks, or damaged")  # fmt: skip
        if row["ambiguous"] > MANY_AMBIGUOUS:
            yield Notice(where, f"{row['ambiguous']:.0%} of its cells could have several labels: "
                         "their prediction sets name them")  # fmt: skip


def named_so(found: Found, batch: str) -> str:
    """Returns a text with the two predicted labels that have most novel cells of a batch."""
    verdicts = found.verdicts(batch)
    if verdicts.empty:
        return ""
    most = verdicts.nlargest(2, "novel").query("novel > 0").to_dict("records")
    said = (f"{row['novel']} of {row['cells']} called {row['predicted label']}" for row in most)
    return f" ({', '.join(said)})"


def of_genes(found: Found) -> Iterator[Notice]:
    """Yield notices on batches that lack genes of the model, with the loss of accuracy."""
    gap = found.table("gene_gap")
    for batch, fact in found.contract["queries"].items():
        overlap = fact.get("gene_overlap", 1.0)
        cost = gap[(gap["batch"] == batch) & (gap["label"] == "all")] if "batch" in gap else gap[:0]
        loss = float(cost["loss"].max()) if len(cost) else 0.0
        if overlap < FEW_GENES or loss > COST or "gene_families_missing" in fact:
            said = f"{1 - overlap:.1%} of the model's genes are not in it"
            if len(cost):
                said += f"; on reference cells that costs {loss:.3f} of accuracy"
            yield Notice(f"batch {batch}", said)


def of_surgery(found: Found) -> Iterator[Notice]:
    """Yield notices on mappings whose cells surgery hardly moved."""
    key = "displacement_median_in_posterior_sd"
    for row in found.certificates.to_dict("records"):
        if row["strategy"] != "frozen" and row.get(key, 1.0) < HARDLY:
            yield Notice(
                f"mapping {row['mapping']}",
                f"surgery moved its cells by {number(row[key])} of their own uncertainty in "
                f"{row['n_steps']:.0f} steps: right for a batch like the reference's own; if it "
                "should have moved, raise surgery.max_epochs and compare",
            )


def of_shifts(found: Found) -> Iterator[Notice]:
    """Yield notices on labels of a batch whose cells are shifted: known types in another state."""
    for row in found.of_final("shifts").to_dict("records"):
        if row["n_shifted"] >= LEAST and row["n_shifted"] > SHIFTED * row["n"]:
            yield Notice(
                f"batch {row['batch']}, label {row['label']}",
                f"{row['n_shifted']} of {row['n']} cells keep the label's markers, but differ from "
                f"it more than held-out batches do: they are shifted (stimulated, sick, of another "
                f"chemistry). They differ most in {row['top_genes']}",
            )


def of_learned(found: Found) -> Iterator[Notice]:
    """Yield notices on calibration that is missing or weaker than usual, and why."""
    scheme = found.learned.get("scheme")
    if scheme == BATCHES and not found.learned.get("batch_fit"):
        yield Notice(
            "does the reference fit",
            "is not known of any batch: in the latent space, cells of labels that the reference "
            "lacks would be no farther from it than held-out batches are",
        )
    if scheme and scheme != BATCHES:
        yield Notice(
            "how far to trust",
            f"it was learned from {scheme}, as no whole batch was held out: what another batch "
            "does to labels is not known, and verdicts may be too kind",
        )


def of_promises(found: Found) -> Iterator[Notice]:
    """Yield notices on batches that miss the requested coverage or accuracy.

    That is the coverage of prediction sets of ambiguous cells, and the accuracy of confident cells;
    both need query batches with known labels.
    """
    trust, asked = found.of_final("trust"), found.learned
    if not asked or "coverage_ambiguous" not in trust:
        return
    promises = {
        "prediction sets hold the known label in {:.0%} of its ambiguous cells":
            ("ambiguous", "coverage_ambiguous", asked["coverage"]),
        "{:.0%} of its confident cells are named right":
            ("confident", "accuracy_confident", 1 - asked["risk"]),
    }  # fmt: skip
    of_labels = trust[(trust["batch"] != "all") & (trust["level"] == "label")]
    for row in of_labels.to_dict("records"):
        for said, (share, key, wanted) in promises.items():
            if row["n"] * row[share] >= LEAST and row[key] < wanted - BELOW:
                why = f"{said.format(row[key])}, where {wanted:.0%} was asked"
                yield Notice(f"batch {row['batch']}", why)


def of_model(found: Found) -> Iterator[Notice]:
    """Yield notices on the classifier: poor validation accuracy, or the variant prefix."""
    scores = found.table("classification")
    if len(scores):
        own = (scores["variant"] == found.final.variant) & (scores["seed"] == found.final.seed)
        kind = (scores["split"] == "validation") & (scores["method"] == "classifier")
        rows = scores[
            own & kind & (scores["probabilities"] == "raw") & (scores["level"] == "label")
        ]
        for row in rows[rows["accuracy"] < POOR].to_dict("records"):
            yield Notice(
                f"classifier {row['variant']}",
                f"of {row['n']:.0f} validation cells of the reference {row['accuracy']:.0%} are "
                "named right: labels that overlap, or too few cells of some",
            )
    if found.final.variant == "prefix":
        yield Notice(
            "classifier prefix",
            "it is trained as scvi-tools did before 1.1, on probabilities in place of logits: its "
            "confidence is off before calibration, and its accuracy may be below that of fixed",
        )


def of_data(found: Found) -> Iterator[Notice]:
    """Yield notices on data that were left out or are unusual."""
    for line in left_out(found.contract):
        yield Notice("data", line)


def notices(found: Found) -> list[Notice]:
    """Returns all notices, the most serious kinds first."""
    kinds = (of_fit, of_shifts, of_promises, of_learned, of_data, of_genes, of_surgery, of_model)
    return [notice for kind in kinds for notice in kind(found)]
