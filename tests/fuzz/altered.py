"""What a prepared file must hold, by an .h5ad that somebody altered, and what atlasmap makes of it.

The oracle decodes a file cell by cell with h5py and numpy alone, and refuses whatever does not fit
together; atlasmap may refuse more (with a code), but what it accepts must be the same, bit for bit.
"""

import importlib.util
import json
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata
import h5py
import numpy as np

from atlasmap.data.blocks import write_h5ad
from atlasmap.data.prepare import (
    checked_dataset,
    prepare_query,
    prepare_reference,
    sizes_of_batches,
)
from atlasmap.data.prepare import stay_on_disk as on_disk
from atlasmap.data.registry import Registry
from atlasmap.data.sheet import Dataset
from atlasmap.errors import AtlasmapError
from atlasmap.settings import DataConfig, DataSettings

ALTER = Path(__file__).resolve().parents[3] / "shared/cases/alter_h5ad.py"
SECONDS = 60  # that a command may take on 180 cells: more is a hang
MEMORY = 6 * 2**30  # bytes of address space beyond what the process has
KEYS = {"batch_key": "batch"}
REFERENCE = {"role": "reference", "label_key": "cell_type", "obs_filter": "role == 'reference'"}
QUERY = {"role": "query", "obs_filter": "role == 'query'"}
QUERY_BATCH = "batch6"


def alter():
    """The script that alters files; it stands beside the checkout, and a user does not have it."""
    spec = importlib.util.spec_from_file_location("alter_h5ad", ALTER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_altered(base: Path, change, path: Path) -> None:
    """A copy of `base` with a change: bytes, or a function of the open file."""
    if not callable(change):
        path.write_bytes(change)
        return
    path.write_bytes(base.read_bytes())
    with h5py.File(path, "a") as file:
        change(file)


# --- the oracle


@dataclass(frozen=True)
class Told:
    """What a file says: names, batch and role of each cell (None: missing), names and symbols of
    genes; labels and counts, which not every command needs, where they are asked for."""

    cells: list[str]
    batch: list[str | None]
    role: list[str | None]
    genes: list[str]
    symbols: list[str] | None
    path: Path

    @property
    def label(self) -> list[str | None]:
        """Of each cell; raises where codes lead nowhere."""
        with h5py.File(self.path) as file:
            return values_of(file["obs"], "cell_type", len(self.cells))

    @property
    def counts(self) -> np.ndarray:
        """Cells × genes, float64; raises where the file's arrays do not fit together."""
        with h5py.File(self.path) as file:
            return counts_of(file["X"], len(self.cells), len(self.genes))


def text(value) -> str:
    """A name."""
    out = value.decode() if isinstance(value, bytes) else str(value)
    out.encode()
    return out


def values_of(group, key: str, n: int) -> list[str | None]:
    """A column of obs or var, cell by cell; raises where codes lead nowhere."""
    stored = group[key]
    if isinstance(stored, h5py.Dataset):
        out = [text(value) for value in stored[:]]
    else:
        names = [text(value) for value in stored["categories"][:]]
        codes = stored["codes"][:]
        assert codes.dtype.kind in "iu" and len(set(names)) == len(names)
        assert all(-1 <= code < len(names) for code in codes)
        out = [None if code == -1 else names[code] for code in codes]
    assert len(out) == n
    return out


def counts_of(stored, n: int, m: int) -> np.ndarray:
    """X, entry by entry; raises where one leads nowhere or is there twice."""
    if isinstance(stored, h5py.Dataset):
        assert stored.shape == (n, m)
        return stored[:].astype(float)
    kind = stored.attrs["encoding-type"]
    assert tuple(stored.attrs["shape"]) == (n, m) and kind in ("csr_matrix", "csc_matrix")
    rows, columns = (n, m) if kind == "csr_matrix" else (m, n)
    sizes = {key: stored[key].shape for key in ("data", "indices", "indptr")}
    assert sizes["data"] == sizes["indices"] and len(sizes["data"]) == 1
    assert sizes["indptr"] == (rows + 1,) and sizes["data"][0] <= n * m
    data, indices, pointers = (stored[key][:] for key in ("data", "indices", "indptr"))
    assert data.dtype.kind in "biuf" and {indices.dtype.kind, pointers.dtype.kind} <= set("iu")
    pointers = [int(p) for p in pointers]
    assert pointers[0] == 0 and pointers[-1] == len(data)
    out, seen = np.zeros((rows, columns)), np.zeros((rows, columns), bool)
    for row in range(rows):
        assert pointers[row] <= pointers[row + 1]
        for k in range(pointers[row], pointers[row + 1]):
            at = int(indices[k])
            assert 0 <= at < columns and not seen[row, at]
            out[row, at], seen[row, at] = float(data[k]), True
    return out if kind == "csr_matrix" else out.T


def told(path: Path) -> Told:
    """What a file says; raises where what is needed does not fit together."""
    with h5py.File(path) as file:
        obs, var = file["obs"], file["var"]
        cells = [text(v) for v in obs[obs.attrs.get("_index", "_index")][:]]
        genes = [text(v) for v in var[var.attrs.get("_index", "_index")][:]]
        columns = [values_of(obs, key, len(cells)) for key in ("batch", "role")]
        try:
            symbols = [str(s) for s in values_of(var, "symbol", len(genes))]
        except Exception:  # nobody needs them
            symbols = None
        return Told(cells, *columns, genes, symbols, path)


# --- atlasmap on the same file


def config(lazily: bool) -> DataConfig:
    memory = 0.1 if lazily else None
    return DataConfig(
        data=DataSettings(
            n_top_genes=None, min_cells_per_label=1, min_gene_overlap=0.5, memory_gb=memory
        )
    )


def row(path: Path, kind: dict) -> Dataset:
    return Dataset(id="d", path=str(path), **KEYS, **kind)


@dataclass(frozen=True)
class Trial:
    """One command on one file: `run` writes what it makes into a folder, and `right` says what is
    wrong with that, by what the file says (None: nothing)."""

    name: str
    run: Callable[[Path, Path], None]
    right: Callable[[Path, Told], str | None]


def trials(registry: Registry) -> Iterator[Trial]:
    """The first rule's commands, in memory and from disk; queries on `registry`."""
    yield Trial("find-batches", find, right_batches)
    for lazily in (False, True):
        where = "from disk" if lazily else "in memory"
        yield Trial(f"prepare-reference {where}", reference_by(config(lazily)), right_reference)
        run = query_by(registry, config(lazily))
        right = lambda out, said: right_query(out, said, registry)  # noqa: E731
        yield Trial(f"prepare-query {where}", run, right)


def find(path: Path, out: Path) -> None:
    names = sizes_of_batches(row(path, QUERY), path, config(False))
    (out / "out.json").write_text(json.dumps(sorted(names)))


def reference_by(settings: DataConfig):
    def run(path: Path, out: Path) -> None:
        made = prepare_reference([row(path, REFERENCE)], [path], settings)
        write_h5ad(made.adata, out / "out.h5ad", None)

    return run


def query_by(registry: Registry, settings: DataConfig):
    def run(path: Path, out: Path) -> None:
        dataset = row(path, QUERY)
        lazily = on_disk([path], settings)
        whole = checked_dataset(dataset, path, settings, lazily=lazily)
        made = prepare_query(whole, dataset, QUERY_BATCH, registry, settings)
        write_h5ad(made.adata, out / "out.h5ad", None)

    return run


def differs(made: anndata.AnnData, names: list[str], counts: np.ndarray, **obs) -> str | None:
    """How cells differ from what they must be."""
    if list(made.obs["barcode"].astype(str)) != names:
        return "cells"
    if made.shape != counts.shape:
        return f"shape {made.shape}, not {counts.shape}"
    if not np.array_equal(made.X.toarray(), counts.astype(np.float32)):
        return "counts"
    return next((key for key, v in obs.items() if list(made.obs[key].astype(str)) != v), None)


def right_batches(out: Path, said: Told) -> str | None:
    names = sorted({b for b, r in zip(said.batch, said.role, strict=True) if r == "query"})
    return None if json.loads((out / "out.json").read_text()) == names else "batches"


def right_reference(out: Path, said: Told) -> str | None:
    made = anndata.read_h5ad(out / "out.h5ad")
    at = [k for k, role in enumerate(said.role) if role == "reference"]
    if list(made.var_names) != said.genes:
        return "genes"
    given = said.label
    labels = ["Unknown" if given[k] in (None, "") else given[k].strip() for k in at]
    batch = [str(said.batch[k]) for k in at]
    return differs(made, [said.cells[k] for k in at], said.counts[at], batch=batch, label=labels)


def right_query(out: Path, said: Told, registry: Registry) -> str | None:
    made = anndata.read_h5ad(out / "out.h5ad")
    at = [k for k, b in enumerate(said.batch) if b == QUERY_BATCH and said.role[k] == "query"]
    wrong, stored = "genes", said.counts[at]
    for names, wanted in ((said.genes, registry.genes), (said.symbols, registry.symbols)):
        if names is None:
            continue
        place = {name: k for k, name in enumerate(names) if names.count(name) == 1}
        counts = np.zeros((len(at), len(wanted)))
        for k, gene in enumerate(wanted):
            if gene in place:
                counts[:, k] = stored[:, place[gene]]
        batch = [QUERY_BATCH] * len(at)
        wrong = differs(made, [said.cells[k] for k in at], counts, batch=batch)
        if wrong is None:
            return None
    return wrong


# --- the judgement


def child(trial: Trial, path: Path, out: Path) -> str:
    """What comes of a command: "coded CODE", "accepted", or what went wrong."""
    try:
        trial.run(path, out)
    except AtlasmapError as error:
        return f"coded {error.code}"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"traceback {type(error).__name__}: {str(error)[:80]} ({last.name}:{last.lineno})"
    return "accepted"


def in_a_process(trial: Trial, path: Path, out: Path) -> str:
    """The same in a process of its own, whose crash or hang is one more answer."""
    answer = out / "answer"
    answer.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        answer.write_text(child(trial, path, out))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hang" if number == signal.SIGALRM else f"crash {signal.Signals(number).name}"
    return answer.read_text() if answer.is_file() else "crash without a word"


def judged(trial: Trial, path: Path, out: Path) -> tuple[str, str]:
    """("coded" | "right" | "wrong", what happened)."""
    for old in out.iterdir():
        old.unlink()
    said = in_a_process(trial, path, out)
    if said.startswith("coded"):
        return "coded", said
    if said != "accepted":
        return "wrong", said
    try:
        wrong = trial.right(out, told(path))
    except Exception as error:
        return (
            "wrong",
            f"accepted, though the file cannot be right ({type(error).__name__} {error})",
        )
    return ("wrong", f"accepted with other {wrong}") if wrong else ("right", "accepted")


def base_registry(base: Path) -> Registry:
    """Of the reference that the unaltered file makes."""
    made = prepare_reference([row(base, REFERENCE)], [base], config(False))
    return Registry.of(made.adata)


def all_judged(base: Path, changes: dict, folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """(alteration, command, verdict, what happened) of each change and command."""
    path, out = folder / "altered.h5ad", folder / "out"
    out.mkdir(exist_ok=True)
    known = list(trials(base_registry(base)))
    for name, change in changes.items():
        try:
            write_altered(base, change, path)
        except ValueError:  # HDF5 itself does not write it
            continue
        for trial in known:
            began = time.monotonic()
            verdict, said = judged(trial, path, out)
            if verdict != "wrong" and time.monotonic() - began > SECONDS / 2:
                verdict, said = "wrong", f"slow, then {said}"
            yield name, trial.name, verdict, said
