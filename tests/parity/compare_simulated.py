"""Compare a finished run of simulated_atlas.yaml with what scvi-tools 1.4.2 reached on that file.

python tests/parity/compare_simulated.py results/simulated_atlas ../shared/golden
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

PEER = {"fixed": "fix", "prefix": "prefix", "linear": "linear"}


def row(what: str, ours: np.ndarray, theirs: np.ndarray) -> dict:
    """Means, standard error of their difference, and the difference in standard errors."""
    error = np.sqrt(ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs))
    return {
        "what": what,
        "ours": ours.mean(),
        "scvi-tools": theirs.mean(),
        "se": error,
        "difference/se": (ours.mean() - theirs.mean()) / error,
    }


def last(history: pd.DataFrame, model: str, metric: str) -> np.ndarray:
    """A validation metric at the end of training, a value a seed."""
    part = history[(history["model"] == model) & (history["metric"] == metric)]
    part = part[part["split"] == "validation"]
    return part.sort_values("epoch").groupby("seed")["value"].last().to_numpy()


def compare(results: Path, golden: Path) -> pd.DataFrame:
    """A row a figure that both sides have."""
    theirs = pd.DataFrame(json.loads((golden / "scvi_tools_simulated_atlas.json").read_text()))
    scores = pd.read_csv(results / "benchmark/classification.csv", keep_default_na=False)
    history = pd.read_csv(results / "benchmark/history.csv")
    query = scores[(scores["batch"] == "all") & (scores["split"] == "query")]
    query = query[query["method"] == "classifier"]
    peer_elbo = theirs.loc[theirs["model"] == "scvi", "elbo_validation"].to_numpy()
    rows = [row("scVI validation ELBO", last(history, "scvi", "elbo"), peer_elbo)]
    for variant, name in PEER.items():
        of_peer = theirs[theirs["variant"] == name]
        for strategy in ("per_batch", "joint"):
            mine = query[(query["variant"] == variant) & (query["strategy"] == strategy)]
            peer = of_peer[of_peer["mode"] == strategy]
            for ours, key in [
                ("accuracy", "query_accuracy_known"),
                ("macro_f1", "query_macro_f1_known"),
            ]:
                label = f"{variant} {strategy} query {ours}"
                rows.append(row(label, mine[ours].to_numpy(float), peer[key].to_numpy()))
        peer = of_peer[of_peer["mode"] == "joint"]
        for metric in ("classification_loss", "calibration_error", "accuracy"):
            ours = last(history, f"scanvi_{variant}", metric)
            label = f"{variant} validation {metric}"
            rows.append(row(label, ours, peer[f"validation_{metric}"].to_numpy()))
    return pd.DataFrame(rows)


if __name__ == "__main__":
    table = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    print(table.to_string(index=False, float_format="{:.4f}".format))
