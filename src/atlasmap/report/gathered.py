"""Gather training histories and certificates from bundles into tables of benchmark/.

The model is identified by the bundle's settings.json, not by its path.
"""

import json
from pathlib import Path

import pandas as pd

from atlasmap.files import read_table
from atlasmap.names import unslug


def about_beside(path: Path) -> dict:
    """Returns settings.json of the bundle that contains a file."""
    return json.loads(path.with_name("settings.json").read_text(encoding="utf-8"))


def keys_of(path: Path) -> dict:
    """Returns seed, model (scvi, scanvi, totalvi), variant, strategy and batch of a bundle's file.

    `batch` is "all" for a joint mapping; strategy and batch are "" for a reference.
    """
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
    """Concatenate history.csv of bundles.

    Columns: seed, model, variant, strategy, batch, epoch, split, metric, value.
    """
    tables = [(keys_of(path), read_table(path)) for path in paths]
    return pd.concat([table.assign(**keys)[[*keys, *table]] for keys, table in tables])


def read_certificates(paths: tuple[Path, ...]) -> pd.DataFrame:
    """Returns a table with one row per certificate.json of a mapping."""
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
