"""Tables of benchmark/ that are gathered from bundles: histories and certificates. Which model each
is of its settings.json says, not where it lies."""

import json
from pathlib import Path

import pandas as pd

from atlasmap.files import read_table, unslug


def about_beside(path: Path) -> dict:
    """settings.json of the bundle that a file lies in."""
    return json.loads(path.with_name("settings.json").read_text(encoding="utf-8"))


def keys_of(path: Path) -> dict:
    """seed, model (scvi, scanvi, totalvi), variant, strategy and batch (or all) of a file in a
    bundle; a reference's has no strategy and no batch."""
    about, de_novo = about_beside(path), "de_novo" in path.parts
    model = "scanvi" if "variant" in about else "totalvi" if "totalvi" in about else "scvi"
    folder = path.parents[1] if de_novo else path.parent
    strategy = about.get("strategy", "de_novo" if de_novo else "")
    return {
        "seed": about["seed"],
        "model": model,
        "variant": about.get("variant", ""),
        "strategy": strategy,
        "batch": unslug(folder.name) if strategy else "",
    }


def read_histories(paths: tuple[Path, ...]) -> pd.DataFrame:
    """history.csv of bundles as one table: seed, model, variant, strategy, batch, epoch, split,
    metric, value."""
    tables = [(keys_of(path), read_table(path)) for path in paths]
    return pd.concat([table.assign(**keys)[[*keys, *table]] for keys, table in tables])


def read_certificates(paths: tuple[Path, ...]) -> pd.DataFrame:
    """certificate.json of mappings, a row each."""
    rows = []
    for path in paths:
        said, keys = json.loads(path.read_text(encoding="utf-8")), keys_of(path)
        reference, query, training = (said[key] for key in ("reference", "query", "training"))
        rows.append(
            {"seed": said["seed"], "variant": keys["variant"] or keys["model"],
             "strategy": said["strategy"], "mapping": keys["batch"],
             "reference_unchanged": reference["unchanged"],
             "n_golden_cells": reference["n_golden_cells"],
             "n_probe_cells": reference["n_probe_cells"], "n_cells": query["n_cells"]}
            | {f"displacement_{key}": value for key, value in query["displacement"].items()}
            | {key: training.get(key) for key in ("n_epochs", "n_steps", "n_trainable", "stopped")}
        )  # fmt: skip
    return pd.DataFrame(rows)
