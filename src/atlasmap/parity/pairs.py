"""Summarise metrics of models trained by atlasmap and by scvi-tools, pair by pair."""

import numpy as np
import pandas as pd

ELBO_WITHIN = 0.01  # largest relative difference of any pair
FEW = 50  # validation cells; with fewer, a single outlying cell decides the ELBO
ERRORS_WITHIN = 2.0  # largest difference of means, in its standard errors
KEYS = ["model", "strategy", "metric"]
PAIR_COLUMNS = ["seed", "model", "strategy", "batch", "n", "metric", "ours", "theirs"]


def summary(pairs: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per model, strategy and metric; `pairs` has PAIR_COLUMNS, per seed and batch.

    Batches mapped one by one are averaged, weighted by their `n` cells, to one pair per seed.
    `se`: standard error of the difference of means over seeds (unpaired); `errors`: the difference
    divided by it. `within`: for the ELBO, whether every pair differs by less than 1 %; for other
    metrics, whether the means differ by at most two standard errors. `strict`: an ELBO of at least
    FEW cells, where a larger difference is an error.
    """
    rows = []
    for keys, group in pairs.groupby(KEYS, sort=False):
        sums = group[["ours", "theirs"]].mul(group["n"], axis=0).groupby(group["seed"]).sum()
        seeds = sums.div(group.groupby("seed")["n"].sum(), axis=0)
        ours, theirs = seeds["ours"].to_numpy(), seeds["theirs"].to_numpy()
        spread = ours.var(ddof=1) + theirs.var(ddof=1) if len(seeds) > 1 else np.nan
        error = float(np.sqrt(spread / len(seeds)))
        difference = float(ours.mean() - theirs.mean())
        strict = keys[-1] == "elbo" and group.groupby("seed")["n"].sum().min() >= FEW
        furthest = float((seeds["ours"] / seeds["theirs"] - 1).abs().max())
        rows.append(
            dict(zip(KEYS, keys, strict=True))
            | {
                "n_pairs": len(seeds),
                "ours": ours.mean(),
                "theirs": theirs.mean(),
                "se": error,
                "errors": difference / error if error > 0 else np.nan,
                "largest_relative": furthest,
                "largest_of_a_batch": float((group["ours"] / group["theirs"] - 1).abs().max()),
                "strict": strict,
                "within": furthest < ELBO_WITHIN
                if keys[-1] == "elbo"
                else abs(difference) <= ERRORS_WITHIN * error or difference == 0,
            }
        )
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame) -> str:
    """Returns the summary as a Markdown table."""
    shown = pd.DataFrame(
        {
            "model": table["model"],
            "surgery": table["strategy"].replace("", "–"),
            "metric": table["metric"],
            "pairs": table["n_pairs"].astype(str),
            "atlasmap": table["ours"].map("{:.4g}".format),
            "scvi-tools": table["theirs"].map("{:.4g}".format),
            "difference in standard errors": table["errors"].map(
                lambda value: "–" if np.isnan(value) else f"{value:+.2f}"
            ),
            "largest difference of a pair": table["largest_relative"].map("{:.2%}".format),
            "of a batch": table["largest_of_a_batch"].map("{:.2%}".format),
            "within": np.where(table["within"], "yes", "**no**"),
        }
    )
    return shown.to_markdown(index=False, disable_numparse=True)
