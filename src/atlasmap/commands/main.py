"""Entry point: the list of commands, logging, and the report of failures."""

import contextlib
import faulthandler
import fcntl
import glob
import logging
import os
import shlex
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Group, Parameter

import atlasmap
from atlasmap.commands.saying import in_red, keep_terminal, listen, used
from atlasmap.errors import AtlasmapError
from atlasmap.jobs import slurm
from atlasmap.jobs.failures import (
    failure_of,
    failure_path,
    hopeless,
    write_failure,
)
from atlasmap.training.stopping import Stopped, ignore_signals, install

log = logging.getLogger("atlasmap")
COMMANDS = {
    "map": ("mapping:map_file", "Map a query file onto a reference bundle, without Snakemake."),
    "doctor": ("cluster:doctor", "Look whether everything that a cluster run needs is there."),
    "plan": ("cluster:plan", "Forecast time and memory of training and mapping."),
    "why": ("cluster:why", "Say why a job failed, and what to do."),
    "card": ("reference:write_card", "Write a bundle's model card."),
    "seal": ("reference:seal", "Seal a reference: one fingerprint over its files."),
    "status": ("cluster:status", "Say how far a run is."),
    "import-scvi": ("exchange:import_scvi", "Make a bundle of a model that scvi-tools saved."),
    "export-scvi": ("exchange:export_scvi", "Write a bundle as scvi-tools loads it."),
    "compare-scvi": ("exchange:compare_scvi", "Train scvi-tools on a run's cells and compare."),
    "simulate": ("data:simulate", "Make a labelled atlas with known truth."),
    "check-results": ("results:check_results", "List results that are missing or altered."),
    "fetch": ("data:fetch", "Download a data set, or make a builtin one."),
    "prepare-reference": ("data:prepare_reference", "Check reference data, choose genes."),
    "find-batches": ("data:find_batches", "List the batches of a query data set."),
    "prepare-query": ("data:prepare_query", "Check a query batch and align its genes."),
    "tree-key": ("data:tree_key", "Print the key of a label tree for reruns."),
    "check-kept": ("data:check_kept", "Check that no batch has lost cells."),
    "write-contract": ("data:write_contract", "Gather the facts of all data sets."),
    "take-reference": ("reference:take_reference", "Take over a trained reference."),
    "describe-reference": ("reference:describe_reference", "Facts of a reference taken over."),
    "train-scvi": ("reference:train_scvi", "Train scVI."),
    "train-scanvi": ("reference:train_scanvi", "Train scANVI from a trained scVI."),
    "denoise": ("reference:denoise", "Denoised genes and proteins of a reference (CITE-seq)."),
    "train-totalvi": ("reference:train_totalvi", "Train totalVI (CITE-seq)."),
    "map-batches": ("mapping:map_batches", "Surgery: map prepared query batches."),
    "train-held-out": ("trust:train_held_out", "Hold batches out, train, and map them."),
    "calibrate": ("trust:calibrate", "Learn how far labels are to be trusted."),
    "join-query": ("de_novo:join_query", "Join reference and query, to train on both."),
    "split-latent": ("de_novo:split_latent", "Split the latent of a joint model."),
    "audit-strategies": ("audit:audit_strategies", "Per batch or joint: what differs, and why."),
    "audit-reference": ("audit:audit_reference", "The reference's accuracy under each query."),
    "second-opinions": ("opinions:second_opinions", "Name query cells by other classifiers."),
    "gene-gap": ("opinions:gene_gap", "Accuracy lost to genes that a query lacks."),
    "complete-reference": ("reference:complete_reference", "Map, card and seal of a bundle."),
    "assemble": ("results:assemble", "Put reference and queries together, name the cells."),
    "gather": ("results:gather", "Gather histories, certificates and scib-metrics."),
    "write-explorer": ("pages:write_explorer", "Write the atlas explorer, a page."),
    "write-report": ("pages:write_report", "Write the report of an atlas, a page."),
    "explore": ("pages:explore", "Serve the explorer of an atlas on this machine."),
    "publish": ("results:publish", "Copy atlas and labels of the final mapping."),
    "show-results": ("results:show_results", "Print the accuracy table and where things are."),
    "score-labels": ("benchmark:score_labels", "Score predicted labels where truth is known."),
    "score-embeddings": ("benchmark:score_embeddings", "scib-metrics of embeddings."),
    "plot-figures": ("figures:plot_figures", "Figures of an atlas."),
    "plot-proteins": ("figures:plot_proteins", "Proteins: raw against denoised, by label."),
}

BY_HAND = ("map", "explore", "status", "why", "doctor", "plan", "check-results", "card", "seal",
           "simulate", "import-scvi", "export-scvi", "compare-scvi")  # fmt: skip
FOR_YOU = Group("Commands for you", sort_key=1)
OF_THE_WORKFLOW = Group("Commands that the workflow calls", sort_key=2)
OTHER = Group("Other", sort_key=3)

app = App(
    name="atlasmap",
    help=atlasmap.__doc__,
    version=atlasmap.__version__,
    group_commands=OTHER,
    # Config keys are flags as they are written: --scvi.n_latent, not --scvi.n-latent.
    default_parameter=Parameter(name_transform=lambda name: name.lower()),
)
app.register_install_completion_command(help="Complete commands and flags in this shell.")
for name, (where, summary) in COMMANDS.items():
    group = FOR_YOU if name in BY_HAND else OF_THE_WORKFLOW
    app.command(f"atlasmap.commands.{where}", name=name, help=summary, group=group)


def show_whole_help(words: list[str]) -> None:
    """Show the whole docstring for `COMMAND --help`. The list of commands shows only the summaries
    in COMMANDS, so that no command's module has to be imported for it."""
    named = next((word for word in words if not word.startswith("-")), "")
    if named in COMMANDS and {"--help", "-h"} & set(words):
        app[named].help = None  # the docstring is taken instead


def set_environment() -> None:
    """Set the environment variables that native libraries read when they are first loaded.

    One thread by default (Snakemake sets OMP_NUM_THREADS to a rule's threads): the order of sums,
    and so their last bits, depends on the number of threads, and minibatches are too small for
    several threads to be faster. Waiting threads must not spin, which costs a factor of ten where
    other jobs use the same cores.
    """
    for name, value in {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "MKL_CBWR": "AUTO",  # else sums depend on memory alignment on some CPUs
        "JAX_PLATFORMS": "cpu",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }.items():
        os.environ.setdefault(name, value)
    # numba and torch share one OpenMP runtime, so both must use the same number of threads.
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])


def restarts() -> int:
    """How often Slurm has requeued this job. Under srun the variable is not set, so Slurm is
    asked."""
    said = os.environ.get("SLURM_RESTART_COUNT")
    if said is None and "SLURM_JOB_ID" in os.environ:
        said = slurm.job(os.environ["SLURM_JOB_ID"]).get("Restarts")
    return int(said or 0)


def write_to(path: Path, attempt: int) -> Path:
    """Redirect stdout and stderr to `path`, including the output of native libraries.

    Returns a hard link to the log with the attempt in its name: Snakemake removes a job's log
    before it tries again, and the link keeps it."""
    restart = restarts()
    path.parent.mkdir(parents=True, exist_ok=True)
    if attempt == 1 and not restart:
        for old in path.parent.glob(f"{glob.escape(path.stem)}.attempt*{path.suffix}"):
            old.unlink()
    kept = path.with_name(f"{path.stem}.attempt{attempt}{'r' * restart}{path.suffix}")
    for name in (path, kept):
        name.unlink(missing_ok=True)
    with open(path, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        with contextlib.suppress(OSError):  # a file system without locks
            # File descriptors 1 and 2 keep the lock while the job runs; `why` tests it.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with contextlib.suppress(OSError):  # a file system without hard links
        os.link(path, kept)
    return kept


def say_where(arguments: list[str], attempt: int) -> None:
    """Write the first lines of a job's log: its command, and the node on which it runs."""
    # Always plain text, even with --json_log: `atlasmap why` and `status` search for this line.
    now = time.strftime("%H:%M:%S")
    print(f"{now} {shlex.join(['atlasmap', *arguments])}", file=sys.stderr, flush=True)
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        node = os.environ.get("SLURMD_NODENAME", "")
        log.info("slurm job %s on %s, attempt %d", job, node, attempt)


def give_up(
    error: BaseException, arguments: list[str], path: Path | None, attempt: int, *, as_json: bool
) -> int:
    """Print the failure, write its record beside the log at `path`, and return the exit code."""
    ignore_signals()
    failure = failure_of(error, arguments, attempt)
    if as_json:
        log.error("%s", failure.code, extra={"failure": asdict(failure)})
    elif isinstance(error, AtlasmapError):
        print(f"{in_red('error:')} {error}", file=sys.stderr)
    elif isinstance(error, Stopped):
        print(f"{in_red('stopped:')} {error}", file=sys.stderr)
    elif not isinstance(error, CycloptsError):  # cyclopts has printed its own message
        traceback.print_exception(error)
        print(f"{in_red('error:')} {failure.kind}\n  mend:     {failure.mend}", file=sys.stderr)
    if path:
        try:
            write_failure(failure, path)
        except OSError as unwritten:
            print(f"no record could be written: {unwritten}", file=sys.stderr)
    return failure.exit_code


def attempted(words: list[str], path: Path, attempt: int) -> int:
    """Run a job's command with its output in `path`, and return its exit code. If an earlier
    attempt failed for a reason that this attempt would only repeat, return its exit code at
    once."""
    keep_terminal()
    kept = write_to(path, attempt)
    say_where(words, attempt)
    before = hopeless(path, words, attempt)
    if before:
        write_failure(before, path)
        log.info("not tried again: attempt %d failed with %s", before.attempt, before.code)
        return before.exit_code
    # If this attempt is killed, the record of an earlier one must not stand for it.
    failure_path(path).unlink(missing_ok=True)
    app(words, exit_on_error=False)
    kept.unlink(missing_ok=True)
    return 0


@app.meta.default
def run(
    *arguments: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    log_file: Annotated[Path | None, Parameter(name="--log")] = None,
    attempt: int = 1,
    quiet: Annotated[bool, Parameter(negative="")] = False,
    verbose: Annotated[bool, Parameter(negative="")] = False,
    json_log: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Map single-cell batches onto a labelled reference.

    Parameters
    ----------
    log_file
        Write all output to this file and, if the command fails, a record of the failure beside it.
    attempt
        Number of this attempt at a job of the workflow, from 1. A job whose earlier attempt failed
        for a permanent reason is not tried again.
    quiet
        Print only warnings and errors.
    verbose
        Print debugging messages, too.
    json_log
        Log as JSON, one object per line.
    """
    words = list(arguments)
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    listen(level, as_json=json_log)
    try:
        if log_file:
            return attempted(words, log_file, attempt)
        app(words, exit_on_error=False)
        return 0
    except (Exception, Stopped) as error:
        return give_up(error, words, log_file, attempt, as_json=json_log)
    finally:
        log.debug("%s", used())


def main() -> None:
    """Run a command; exits with an exit code of `atlasmap.jobs.failures`."""
    set_environment()
    faulthandler.enable()  # prints the Python stack if a native library crashes
    install()
    show_whole_help(sys.argv[1:])
    code = app.meta()
    if code:  # HDF5 with an unwritten file may crash at exit and hide the code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
