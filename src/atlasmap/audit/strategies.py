"""Surgery per batch or joint? The effect of each difference between the two, in numbers.

Latent, labels and confidence of the same query cells are compared. Compared with surgery per batch:
`joint`, usual surgery on all batches together; `joint_by_batch`, the same model applied to one
batch at a time; and `matched`, joint surgery in which each batch is trained as if it were alone.
Compared with matched surgery: the same with the causes of `Causes` switched on (one by one, and all
three), and with another seed, which shows how far cells move by chance.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import anndata
import numpy as np
import pandas as pd

from atlasmap.audit.matched import Causes, fit_matched, members
from atlasmap.bundle import Bundle, device_of
from atlasmap.errors import AtlasmapError, listed
from atlasmap.mapping.embed import Embedding, embed
from atlasmap.mapping.encode import encode
from atlasmap.mapping.query import append_rows, as_train_settings, joined
from atlasmap.settings import SurgerySettings
from atlasmap.training.cells import Cells

MATCHED = {
    "matched": Causes(),
    "updates": Causes(updates=True),
    "scale": Causes(scale=True),
    "momentum": Causes(momentum=True),
    "all_three": Causes(updates=True, scale=True, momentum=True),
}
WHOLE = ("joint", "joint_by_batch", "matched")  # compared with the mapping batch by batch
FEW_FLIPS = 0.02  # largest fraction of changed labels at which the choice hardly matters
SMALL = 200  # batches with fewer cells are reported as small


@dataclass(frozen=True)
class Query:
    """Concatenated query batches (sorted by name), and the settings and seed of their mapping."""

    names: list[str]
    cells: anndata.AnnData
    settings: SurgerySettings
    seed: int

    @classmethod
    def of(
        cls, batches: dict[str, anndata.AnnData], settings: SurgerySettings, seed: int
    ) -> "Query":
        """Concatenate prepared query batches (name → cells)."""
        names = sorted(batches)
        return cls(names, joined([batches[name] for name in names]), settings, seed)


def by_batch(model, cells: Cells) -> Embedding:
    """As `embed`, but one batch at a time."""
    codes = cells.codes[:, 0].cpu().numpy()
    parts, places = [], []
    for code in np.unique(codes):
        at = np.flatnonzero(codes == code)
        parts.append(embed(model, cells.taken(at)))
        places.append(at)
    order = np.argsort(np.concatenate(places))
    mean, var = (np.concatenate([getattr(p, k) for p in parts])[order] for k in ("mean", "var"))
    soft = None
    if parts[0].soft_labels is not None:
        soft = np.concatenate([part.soft_labels for part in parts])[order]
    return Embedding(mean, var, soft)


def matched(reference: Bundle, query: Query, causes: Causes) -> Embedding:
    """Map all batches onto `reference` by matched surgery, which changes its model in place; raises
    AUDIT_COVARIATES."""
    new = reference.registry.new_categories(query.cells.obs)
    if any(names for covariate, names in new.items() if covariate):
        raise AtlasmapError(
            "AUDIT_COVARIATES",
            expected="query batches that bring no new category of a further covariate",
            found=f"{sum(len(v) for k, v in new.items() if k)} new categories",
            mend="their columns are shared by batches, so strategies cannot be matched; "
            "compare the mappings themselves",
        )
    append_rows(reference.model, query.cells, new, query.settings, query.seed)
    registry = reference.registry.extended(new)
    cells = encode(registry, query.cells, device_of(reference.model))
    first = len(reference.registry.batches)
    settings = partial(as_train_settings, query.settings)
    batches = members(reference.model, cells, new[0], first, settings, query.seed)
    fit_matched(reference.model, batches, causes)
    return embed(reference.model, cells)


def compared(
    name: str, one: Embedding, other: Embedding, batch: np.ndarray, labels: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare two embeddings of the same cells; returns a table per batch (and for all cells), and
    one per label predicted in `one`.

    latent_median and latent_max are of the distance in latent space; median_in_posterior_sd is the
    median distance in posterior standard deviations of `one`; flips: fraction of cells with another
    label; confidence: mean change of the highest probability.
    """
    distance = np.linalg.norm(one.mean - other.mean, axis=1)
    table = pd.DataFrame({"batch": batch, "distance": distance})
    table["relative"] = distance / np.sqrt(one.var.sum(1))
    if one.soft_labels is not None:
        said = one.soft_labels.argmax(1)
        table["label"] = np.array(labels, object)[said]
        table["flip"] = said != other.soft_labels.argmax(1)
        table["confidence"] = other.soft_labels.max(1) - one.soft_labels.max(1)

    def row(part: pd.DataFrame) -> dict:
        out = {
            "n": len(part),
            "latent_median": part["distance"].median(),
            "latent_max": part["distance"].max(),
            "median_in_posterior_sd": part["relative"].median(),
        }
        if "flip" in part:
            out |= {"flips": part["flip"].mean(), "confidence": part["confidence"].mean()}
        return out

    batches = [("all", table), *table.groupby("batch")]
    of_batch = [{"comparison": name, "batch": key} | row(part) for key, part in batches]
    of_label = []
    if "flip" in table:
        of_label = [
            {"comparison": name, "label": key} | row(part) for key, part in table.groupby("label")
        ]
    return pd.DataFrame(of_batch), pd.DataFrame(of_label)


def audit_strategies(
    fresh: Callable[[], Bundle], query: Query, per_batch: Embedding, joint: Bundle
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run all comparisons; returns a table per batch and one per label.

    `fresh`: loads the reference's bundle; `per_batch`: embedding by surgery per batch, in the order
    of `query.cells`; `joint`: bundle after joint surgery. Raises AUDIT_COVARIATES.
    """
    cells = encode(joint.registry, query.cells, device_of(joint.model))
    ways = {"joint": embed(joint.model, cells), "joint_by_batch": by_batch(joint.model, cells)}
    for name, causes in MATCHED.items():
        ways[name] = matched(fresh(), query, causes)
    ways["another_seed"] = matched(fresh(), replace(query, seed=query.seed + 1), Causes())
    batch = query.cells.obs["batch"].astype(str).to_numpy()
    labels = joint.registry.labels
    tables = [
        compared(name, per_batch if name in WHOLE else ways["matched"], way, batch, labels)
        for name, way in ways.items()
    ]
    numerics = compared("inference", ways["joint"], ways["joint_by_batch"], batch, labels)
    batches, of_labels = zip(*tables, numerics, strict=True)
    return pd.concat(batches, ignore_index=True), pd.concat(of_labels, ignore_index=True)


def recommendation(table: pd.DataFrame, settings: SurgerySettings) -> str:
    """Recommendation in a few sentences, from the table per batch."""
    everyone = table[table["batch"] == "all"].set_index("comparison")
    sizes = table[(table["comparison"] == "joint") & (table["batch"] != "all")]
    if len(sizes) == 1:
        return "There is one query batch: joint surgery is surgery batch by batch."
    moved, chance = (
        everyone.loc[way, "median_in_posterior_sd"] for way in ("joint", "another_seed")
    )
    said = f"Joint surgery moves cells by {moved:.2g} posterior standard deviations (median)"
    few = False
    if "flips" in everyone:
        flips, by_chance = everyone.loc["joint", "flips"], everyone.loc["another_seed", "flips"]
        few = flips <= max(FEW_FLIPS, by_chance)
        said += f" and changes the label of {flips:.1%}; another seed alone moves them by"
        said += f" {chance:.2g} and changes {by_chance:.1%}."
    else:
        said += f", another seed alone by {chance:.2g}."
    causes = everyone.loc[["updates", "scale", "momentum"], "latent_median"]
    said += f" Of the causes {WORDS[causes.idxmax()]} is worth most."
    if few:
        said += " The choice hardly matters here: per_batch, where a batch's result depends on no"
        said += " other batch and next month's batch moves none."
    else:
        said += " Use per_batch: a batch's result depends on no other batch."
    small = (sizes["n"] < SMALL).sum()
    if small:
        said += f" {small} batches have fewer than {SMALL} cells and few updates each:"
        said += " look at their displacement in the certificate, and train them longer."
    return said + not_matched(settings)


def not_matched(settings: SurgerySettings) -> str:
    """Sentence on the settings of the mapping that matched surgery does not support; empty if they
    have their defaults."""
    plain = type(settings)()
    odd = [key for key in ADAPTIVE if getattr(settings, key) != getattr(plain, key)]
    if not odd:
        return ""
    return f" (Matched surgery is without {listed(odd)}: it need not be the mapping itself.)"


ADAPTIVE = ("early_stopping", "reduce_lr_on_plateau", "gradient_clip", "surgery_dropout")
WORDS = {
    "updates": "the number of updates that a batch gets",
    "scale": "the scale of a batch's gradient in mixed minibatches",
    "momentum": "momentum that moves the columns of absent batches",
}
