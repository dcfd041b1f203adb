"""Entry point: the list of commands, logging, and errors in one block."""

import logging
import os
import shlex
import sys

from cyclopts import App, Parameter

import atlasmap
from atlasmap.errors import AtlasmapError

log = logging.getLogger("atlasmap")
COMMANDS = {
    "map": ("mapping:map_file", "Map a query file onto a reference bundle, without Snakemake."),
    "simulate": ("data:simulate", "Make a labelled atlas with known truth."),
    "check-results": ("results:check_results", "List results that are missing or altered."),
    "fetch": ("data:fetch", "Download a data set, or make a builtin one."),
    "prepare-reference": ("data:prepare_reference", "Check reference data, choose genes."),
    "find-batches": ("data:find_batches", "List the batches of a query data set."),
    "prepare-query": ("data:prepare_query", "Check a query batch and align its genes."),
    "write-contract": ("data:write_contract", "Gather what was checked and decided."),
    "train-scvi": ("reference:train_scvi", "Train scVI."),
    "train-scanvi": ("reference:train_scanvi", "Train scANVI from a trained scVI."),
    "operate": ("mapping:operate", "Surgery: map prepared query batches."),
    "fit-umap": ("results:fit_umap", "Fit the map on the reference's latent."),
    "assemble": ("results:assemble", "Put reference and queries together, name the cells."),
    "gather-history": ("results:gather_history", "Gather training histories into one table."),
    "publish": ("results:publish", "Copy a file of the final mapping."),
    "show-results": ("results:show_results", "Print the accuracy table and where things are."),
    "score-labels": ("benchmark:score_labels", "Score predicted labels where truth is known."),
    "score-embeddings": ("benchmark:score_embeddings", "scib-metrics of embeddings."),
    "gather-tables": ("results:gather_tables", "Concatenate tables."),
    "plot-loss-curves": ("figures:plot_loss_curves", "Loss, calibration error, accuracy."),
    "plot-confusion": ("figures:plot_confusion", "Confusion matrices."),
    "plot-embeddings": ("figures:plot_embeddings", "Maps by label, batch and role."),
    "plot-scib-table": ("figures:plot_scib_table", "The scib-metrics table as a picture."),
    "plot-reliability": ("figures:plot_reliability", "Reliability curves."),
}

app = App(
    name="atlasmap",
    help=atlasmap.__doc__,
    version=atlasmap.__version__,
    # Config keys are flags as they are written: --scvi.n_latent, not --scvi.n-latent.
    default_parameter=Parameter(name_transform=lambda name: name.lower()),
)
for name, (where, summary) in COMMANDS.items():
    app.command(f"atlasmap.commands.{where}", name=name, help=summary)


def set_environment() -> None:
    """What native libraries read when they are first loaded.

    One thread unless asked (Snakemake sets OMP_NUM_THREADS to a rule's threads): sums, and so bits,
    depend on how many there are, and minibatches are too small to gain. Threads that wait must not
    spin: beside other jobs on the same cores that costs a factor of ten.
    """
    for name, value in {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "JAX_PLATFORMS": "cpu",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }.items():
        os.environ.setdefault(name, value)


def main() -> None:
    """Run a command; an AtlasmapError is printed as it is and exits with 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("matplotlib", "fontTools", "jax", "numba", "pooch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    set_environment()
    if not sys.stderr.isatty():  # a job's log starts with the command that made it
        log.info("%s", shlex.join(["atlasmap", *sys.argv[1:]]))
    try:
        app()
    except AtlasmapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
