"""Entry point: the list of commands, logging, and errors in one block."""

import logging
import os
import sys

from cyclopts import App, Parameter

import atlasmap
from atlasmap.errors import AtlasmapError

COMMANDS = {
    "map": "mapping:map_file",
    "simulate": "data:simulate",
    "fetch": "data:fetch",
    "prepare-reference": "data:prepare_reference",
    "find-batches": "data:find_batches",
    "prepare-query": "data:prepare_query",
    "write-contract": "data:write_contract",
    "train-scvi": "reference:train_scvi",
    "train-scanvi": "reference:train_scanvi",
    "operate": "mapping:operate",
    "fit-umap": "results:fit_umap",
    "assemble": "results:assemble",
    "gather-history": "results:gather_history",
    "publish": "results:publish",
    "check-results": "results:check_results",
    "score-labels": "benchmark:score_labels",
    "score-embeddings": "benchmark:score_embeddings",
    "gather-scib": "benchmark:gather_scib",
    "plot-loss-curves": "figures:plot_loss_curves",
    "plot-confusion": "figures:plot_confusion",
    "plot-embeddings": "figures:plot_embeddings",
    "plot-scib-table": "figures:plot_scib_table",
    "plot-reliability": "figures:plot_reliability",
}

app = App(
    name="atlasmap",
    help=atlasmap.__doc__,
    version=atlasmap.__version__,
    # Config keys are flags as they are written: --scvi.n_latent, not --scvi.n-latent.
    default_parameter=Parameter(name_transform=lambda name: name.lower()),
)
for name, where in COMMANDS.items():
    app.command(f"atlasmap.commands.{where}", name=name)


def deterministic() -> None:
    """Same config, same bits: no thread-dependent or autotuned kernels, on GPU too."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def main() -> None:
    """Run a command; an AtlasmapError is printed as it is and exits with 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("matplotlib", "fontTools", "jax", "numba", "pooch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    deterministic()
    try:
        app()
    except AtlasmapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
