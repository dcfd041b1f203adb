"""Audits of a mapping: per batch or joint surgery, and whether the reference changed."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from atlasmap.commands.mapping import QuerySettings
from atlasmap.commands.parameters import OnDevice, Queries, ReferenceBundle
from atlasmap.files import write_json, write_table, write_text
from atlasmap.names import unslug
from atlasmap.report.audits import reference_page, strategies_page
from atlasmap.report.pages import as_html


def audit_strategies(
    *queries: Queries,
    reference_bundle: ReferenceBundle,
    per_batch: list[Path],
    joint: Path,
    out: Path,
    seed: int = 0,
    how: QuerySettings = QuerySettings(),
    device: OnDevice = "auto",
) -> None:
    """Compare per-batch with joint surgery on the same query cells, and measure the effect of each
    cause of their difference: number of updates, gradient scale, momentum.

    Example: atlasmap audit-strategies a.h5ad --reference_bundle b --per_batch a --joint all --out c

    Parameters
    ----------
    per_batch
        latent.h5ad of each query batch, mapped by itself.
    joint
        Folder of the joint mapping's delta bundle (what surgery added to the reference).
    out
        Output folder: strategies.csv (per batch), strategies_labels.csv (per label),
        strategies.json (the recommendation) and strategies.html.
    seed
        Seed with which the queries were mapped.
    how
        Settings with which the queries were mapped.
    """
    from atlasmap.audit import strategies
    from atlasmap.bundle import load, load_delta
    from atlasmap.device import pick_device
    from atlasmap.mapping.embed import Embedding

    chosen = pick_device(device)
    parts = [anndata.read_h5ad(path) for path in queries]
    batches = {str(part.obs["batch"].iloc[0]): part for part in parts}
    surgery = how.on(reference_bundle)
    query = strategies.Query.of(batches, surgery, seed)
    latents = [anndata.read_h5ad(path) for path in per_batch]
    latents = sorted(latents, key=lambda one: str(one.obs["batch"].iloc[0]))
    keys = [key for key in ("X_latent", "latent_var", "soft_labels") if key in latents[0].obsm]
    known = [np.concatenate([one.obsm[key] for one in latents]) for key in keys]
    alone = Embedding(*known, *[None] * (3 - len(known)))
    whole = load_delta(joint, load(reference_bundle, chosen))
    by_batch, by_label = strategies.audit_strategies(
        lambda: load(reference_bundle, chosen), query, alone, whole
    )
    write_table(out / "strategies.csv", by_batch)
    write_table(out / "strategies_labels.csv", by_label)
    said = strategies.recommendation(by_batch, surgery)
    write_json(out / "strategies.json", {"recommendation": said, "seed": seed})
    write_text(out / "strategies.html", as_html(strategies_page(by_batch, by_label, said)))
    print(said)


def audit_reference(
    *mappings: Path,
    reference_bundle: Path,
    cells: Path,
    de_novo: list[Path],
    out: Path,
) -> None:
    """Compare the accuracy on reference cells before mapping, after surgery for each query, and
    after training reference and query jointly.

    Example: atlasmap audit-reference a --reference_bundle b --cells c.h5ad --de_novo d --out audit

    Parameters
    ----------
    mappings
        Folders of per-batch mappings (delta bundles).
    reference_bundle
        The reference's bundle, with reference_latent.h5ad.
    cells
        The prepared reference, with counts (.h5ad).
    de_novo
        Bundles of models trained jointly with one query batch, with reference_latent.h5ad.
    out
        Output folder: reference.csv, reference_confusion.csv, reference.json and reference.html.
    """
    from atlasmap.audit import reference as audit
    from atlasmap.bundle import load, load_delta, read_about
    from atlasmap.device import pick_device
    from atlasmap.mapping.given import read_latent

    # Labels before mapping are computed again on the CPU: the stored ones may come from a GPU, and
    # would then differ in the last bits. Nothing is trained, so the CPU is fast enough.
    cpu, latent = pick_device("cpu"), read_latent(reference_bundle)
    counts = anndata.read_h5ad(cells)
    reference = load(reference_bundle, cpu)
    unlabeled = reference.registry.unlabeled_category
    before = audit.soft_labels(reference, counts)
    own = audit.named(latent, before)
    models, facts = [(own, "", "reference")], {}
    for folder in mappings:
        after = load_delta(folder, load(reference_bundle, cpu))
        same = audit.under_surgery(latent, counts, after, before)
        models.append((same, unslug(folder.name), "surgery"))
    for folder in de_novo:
        query, whole = unslug(folder.parent.name), read_latent(folder)
        trained = audit.named(whole)
        models.append((trained, query, "de_novo"))
        n_query = int((whole.obs["role"] == "query").sum())
        facts[query] = audit.reasons(read_about(folder), trained, n_query, unlabeled)
    facts[""] = audit.reasons(read_about(reference_bundle), own, 0, unlabeled)
    table, confused = (
        pd.concat([of(*model, unlabeled) for model in models], ignore_index=True)
        for of in (audit.scores, audit.confusion)
    )
    write_table(out / "reference.csv", table)
    write_table(out / "reference_confusion.csv", confused)
    said = audit.answer(table)
    write_json(out / "reference.json", {"answer": said, "trainings": facts})
    write_text(out / "reference.html", as_html(reference_page(table, facts, said)))
    print(said)
