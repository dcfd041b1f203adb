"""Compare a finished run with scvi-tools on the same cells, splits, settings and seeds."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from pydantic import TypeAdapter

from atlasmap.bundle import read_about, read_registry
from atlasmap.data.registry import Registry
from atlasmap.errors import AtlasmapError
from atlasmap.evaluation.classification import score
from atlasmap.files import read_table
from atlasmap.mapping.query import joined
from atlasmap.mapping.reference import SCANVI_EPOCHS, warmed_by_step, with_epochs
from atlasmap.parity import peer
from atlasmap.parity.pairs import PAIR_COLUMNS
from atlasmap.settings import (
    ScanviSettings,
    ScviSettings,
    SurgerySettings,
    TotalviSettings,
    TotalviSurgerySettings,
)
from atlasmap.training.loop import epochs_by_size
from atlasmap.training.split import split_cells

log = logging.getLogger("atlasmap")
METRICS = ("elbo", "reconstruction_loss")
SCORES = ("accuracy", "macro_f1", "ece")


@dataclass(frozen=True)
class Run:
    """One seed of a finished run: its folder, the prepared cells, the model's registry."""

    folder: Path
    seed: int
    reference: anndata.AnnData
    queries: dict[str, anndata.AnnData]
    registry: Registry

    @property
    def unlabeled(self) -> str:
        """Name of the unlabelled category."""
        return self.registry.unlabeled_category


def runs_in(results: Path) -> Iterator[Run]:
    """Yield a `Run` per seed of results/{atlas}; raises RESULTS_MISSING."""
    models = ("scvi", "totalvi")
    seeds = sorted(
        file for model in models for file in results.glob(f"seed*/reference/{model}/settings.json")
    )
    if not seeds:
        raise AtlasmapError(
            "RESULTS_MISSING",
            expected="results of a finished run: results/ATLAS with seed*/reference/scvi (or "
            "totalvi)",
            found=f"none in {results}",
            mend="run the workflow first, then compare what it made",
        )
    reference = anndata.read_h5ad(results / "data/reference.h5ad")
    paths = sorted((results / "data/queries").glob("*.h5ad"))
    queries = {path.stem: anndata.read_h5ad(path) for path in paths}
    for file in seeds:
        folder = file.parents[2]
        registry = read_registry(file.parent)
        seed = read_about(file.parent)["seed"]
        yield Run(folder, seed, reference, queries, registry)


def of_validation(folder: Path) -> pd.DataFrame:
    """Returns the validation metrics in a bundle's history (epochs × metrics)."""
    history = read_table(folder / "history.csv")
    validation = history[history["split"] == "validation"]
    return validation.pivot(index="epoch", columns="metric", values="value").sort_index()


def last(folder: Path, metric: str) -> float:
    """Returns the last value of a validation metric."""
    return float(of_validation(folder)[metric].dropna().iloc[-1])


def best(folder: Path, metric: str) -> float:
    """Returns a validation metric at the epoch with the best (lowest) validation ELBO loss."""
    table = of_validation(folder)
    return float(table.loc[table["elbo"].idxmin(), metric])


def settings_in(folder: Path, key: str, cls: type) -> Any:
    """Returns the settings under `key` in a bundle's settings.json, as an instance of `cls`."""
    return TypeAdapter(cls).validate_python(read_about(folder)[key])


def check_split(ours: np.ndarray, theirs: peer.Trained, what: str) -> None:
    """Raise PARITY_SPLIT unless both sides validated on the same cells."""
    if not np.array_equal(np.sort(ours), theirs.validation):
        raise AtlasmapError(
            "PARITY_SPLIT",
            expected=f"{what}: the validation cells of our split in scvi-tools' save",
            found=f"{len(ours)} against {len(theirs.validation)} cells, or other ones",
            mend="compare with scvi-tools 1.4.2; if it is that, please report this",
        )


def scored(truth, soft: pd.DataFrame, run: Run) -> dict[str, float]:
    """Returns accuracy, macro-F1 and calibration error of soft labels (cells × labels)."""
    predicted, confidence = soft.columns.to_numpy()[soft.to_numpy().argmax(1)], soft.max(axis=1)
    return of_labels(truth, predicted, confidence.to_numpy(), run)


def of_labels(truth, predicted, confidence, run: Run) -> dict[str, float]:
    """Returns the same scores from labels and their confidence; {} if no cell can be scored."""
    truth, known = np.asarray(truth, str), set(run.registry.labels)
    found = score(truth, np.asarray(predicted, str), confidence, known, run.unlabeled)
    return {} if found is None else found.summary.iloc[0][list(SCORES)].to_dict()


def rows(run: Run, ours: dict, theirs: dict, **where: str | int) -> list[dict]:
    """Returns one row (PAIR_COLUMNS) per metric that both sides have."""
    start = dict.fromkeys(PAIR_COLUMNS, "") | {"seed": run.seed} | where
    both = [metric for metric in ours if metric in theirs]
    return [start | {"metric": m, "ours": ours[m], "theirs": theirs[m]} for m in both]


def validation_cells(folder: Path) -> tuple[anndata.AnnData, np.ndarray]:
    """Returns the reference in latent space, and the indices of its validation cells."""
    latent = anndata.read_h5ad(folder / "reference_latent.h5ad")
    return latent, np.flatnonzero(latent.obs["split"] == "validation")


def compare_reference(run: Run) -> Iterator[tuple[str, peer.Trained, list[dict]]]:
    """Yield (name, scvi-tools' model, pairs) for scVI and each scANVI variant."""
    folder = run.folder / "reference/scvi"
    settings = settings_in(folder, "scvi", ScviSettings)
    epochs = epochs_by_size(run.reference.n_obs)
    settings = replace(settings, train=with_epochs(settings.train, epochs))
    registry = run.registry
    theirs = peer.train_scvi(
        run.reference, settings, run.seed, list(registry.categorical), registry.continuous
    )
    check_split(validation_cells(folder)[1], theirs, "scVI")
    numbers = {m: last(folder, m) for m in METRICS}
    their_numbers = {m: theirs.last(m) for m in METRICS}
    where = {"n": len(theirs.validation)}
    yield "scvi", theirs, rows(run, numbers, their_numbers, model="scVI", **where)
    for folder in sorted(run.folder.glob("reference/scanvi_*")):
        variant = read_about(folder)["variant"]
        scanvi = settings_in(folder, "scanvi", ScanviSettings)
        scanvi = replace(scanvi, train=with_epochs(scanvi.train, SCANVI_EPOCHS))
        trained = peer.train_scanvi(theirs, scanvi, variant, run.seed, run.unlabeled)
        latent, validation = validation_cells(folder)
        check_split(validation, trained, f"scANVI {variant}")
        truth = latent.obs["label"].astype(str).to_numpy()[validation]
        names = [str(name) for name in latent.uns["soft_label_names"]]
        soft = pd.DataFrame(latent.obsm["soft_labels"][validation], columns=names)
        ours = {m: last(folder, m) for m in METRICS} | scored(truth, soft, run)
        their_soft = trained.soft_labels().iloc[validation]
        numbers = {m: trained.last(m) for m in METRICS} | scored(truth, their_soft, run)
        yield variant, trained, rows(run, ours, numbers, model=f"scANVI {variant}", **where)


def trained_atlases(run: Run, variant: str) -> list[Path]:
    """Returns the atlases of the strategies that train in surgery (joint, per_batch)."""
    names = (run.folder / f"mapping/{variant}/{way}/atlas.h5ad" for way in ("joint", "per_batch"))
    return [path for path in names if path.is_file()]


def compare_mapping(run: Run, variant: str, reference: peer.Trained) -> Iterator[list[dict]]:
    """Yield the pairs of a variant's surgery, for each strategy and mapping of the run."""
    for top in trained_atlases(run, variant):
        strategy = top.parent.name
        groups = {name: [name] for name in run.queries}
        if strategy == "joint":
            groups = {"all": list(run.queries)}
        softs, truths, where = [], [], {"model": f"scANVI {variant}", "strategy": strategy}
        for group, members in groups.items():
            folder = top.parent / group
            query = joined([run.queries[name] for name in members])
            settings = settings_in(folder, "surgery", SurgerySettings)
            theirs = peer.map_query(reference, query, settings, run.seed, run.unlabeled)
            split = split_cells(np.arange(query.n_obs), settings.train_size, run.seed)
            check_split(split.validation, theirs, f"surgery {variant} {strategy} {group}")
            numbers = {m: theirs.last(m) for m in METRICS}
            ours = {m: last(folder, m) for m in METRICS}
            n = len(theirs.validation)
            yield rows(run, ours, numbers, batch=group, n=n, **where)
            softs.append(theirs.soft_labels())
            if "truth" in query.obs:
                truths.append(query.obs["truth"].astype(str).to_numpy())
        if len(truths) == len(softs):
            cells = anndata.read_h5ad(top).obs
            cells = cells[cells["role"] == "query"]
            ours = of_labels(
                cells["truth"], cells["predicted_label"], cells["confidence"].to_numpy(), run
            )
            their_scores = scored(np.concatenate(truths), pd.concat(softs), run)
            yield rows(run, ours, their_scores, batch="all", n=len(cells), **where)


def compare_totalvi(run: Run) -> Iterator[list[dict]]:
    """Yield the pairs of totalVI and of its surgery, for each strategy and mapping of the run.

    Metrics are those of the epoch with the best validation ELBO: with few cells totalVI overfits
    early, and the last epoch is arbitrary.
    """
    folder = run.folder / "reference/totalvi"
    settings = settings_in(folder, "totalvi", TotalviSettings)
    n = run.reference.n_obs
    train = warmed_by_step(with_epochs(settings.train, epochs_by_size(n)), n)
    covariates = list(run.registry.categorical), run.registry.continuous
    theirs = peer.train_totalvi(
        run.reference, replace(settings, train=train), run.seed, *covariates
    )
    check_split(validation_cells(folder)[1], theirs, "totalVI")
    ours, numbers = ({m: of(m) for m in METRICS} for of in (partial(best, folder), theirs.best))
    yield rows(run, ours, numbers, model="totalVI", n=len(theirs.validation))
    for top in trained_atlases(run, "totalvi"):
        groups = {name: [name] for name in run.queries}
        if top.parent.name == "joint":
            groups = {"all": list(run.queries)}
        for group, members in groups.items():
            folder = top.parent / group
            query = joined([run.queries[name] for name in members])
            surgery = settings_in(folder, "surgery", TotalviSurgerySettings)
            mapped = peer.map_citeseq(theirs, query, surgery, run.seed)
            split = split_cells(np.arange(query.n_obs), surgery.train_size, run.seed)
            check_split(split.validation, mapped, f"surgery totalVI {top.parent.name} {group}")
            ours, numbers = (
                {m: of(m) for m in METRICS} for of in (partial(best, folder), mapped.best)
            )
            where = {"model": "totalVI", "strategy": top.parent.name, "batch": group}
            yield rows(run, ours, numbers, n=len(mapped.validation), **where)


def compare_seed(run: Run) -> list[dict]:
    """Returns all pairs of one seed."""
    if run.registry.proteins:
        return [pair for pairs in compare_totalvi(run) for pair in pairs]
    found = []
    for name, trained, pairs in compare_reference(run):
        log.info("seed %d: %s", run.seed, name)
        found += pairs
        if name != "scvi":
            for pairs_mapped in compare_mapping(run, name, trained):
                found += pairs_mapped
    return found


def compare(results: Path, cores: int) -> pd.DataFrame:
    """Returns all pairs of results/{atlas} (columns PAIR_COLUMNS).

    Trains scvi-tools' models for every seed, `cores` seeds in parallel.
    """
    found = Parallel(n_jobs=cores)(delayed(compare_seed)(run) for run in runs_in(results))
    return pd.DataFrame([pair for pairs in found for pair in pairs], columns=PAIR_COLUMNS)
