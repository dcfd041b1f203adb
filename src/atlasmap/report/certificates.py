"""The page of surgery certificates."""

import pandas as pd

from atlasmap.report.pages import table

COLUMNS = {
    "n_cells": "cells",
    "displacement_median": "moved, median",
    "displacement_q90": "moved, 90th percentile",
    "displacement_median_in_posterior_sd": "moved, posterior s.d.",
    "displacement_labels_changed": "labels changed",
    "n_epochs": "epochs",
    "n_steps": "steps",
    "n_trainable": "trained parameters",
    "stopped": "ended by",
}


def certificates_page(certificates: pd.DataFrame) -> str:
    """Returns certificates (a table of `atlasmap gather-certificates`) as Markdown."""
    n_probe = int(certificates["n_probe_cells"].min())
    probe = f" and for {n_probe} of its cells" if n_probe else ""
    keys = [key for key in ("seed", "variant", "strategy", "mapping") if key in certificates]
    shown = certificates[keys + [key for key in COLUMNS if key in certificates]]
    return f"""# Surgery certificates

Of {len(certificates)} mappings none moved the reference: for its golden cells{probe}, latent and
label probabilities after surgery are those of before, bit for bit, as are the weights. (A mapping
for which they are not stops with REFERENCE_MOVED, and is not here.)

How far the query moved: from where the frozen encoder puts each cell to where it is after surgery,
as a distance in the latent space and in standard deviations of the cell's own posterior. Much less
than one says that surgery had little to do, or too few steps to do it.

{table(shown, COLUMNS)}

Everything that was compared, and the hash of the weights, is in each mapping's certificate.json.
"""
