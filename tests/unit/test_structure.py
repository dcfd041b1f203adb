"""The shape of the code: layers, function sizes, docstrings, no pickle, light start."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src" / "atlasmap"
FILES = sorted(SRC.rglob("*.py"))

# A room may import itself, its neighbours of the same line and the lines below it.
LAYERS = [
    ["__init__", "errors", "names", "files", "device", "settings", "vendor"],
    ["config", "models"],
    ["data"],
    ["training"],
    ["mapping", "bundle"],
    ["exchange"],
    ["labels"],
    ["evaluation", "jobs"],
    ["audit", "card", "explorer", "figures", "forecast", "parity", "report"],
    ["api"],
    ["commands"],
]


def layer(module: str) -> int:
    name = module.removeprefix("atlasmap").lstrip(".").split(".")[0] or "__init__"
    return next(k for k, names in enumerate(LAYERS) if name in names)


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def module_of(path: Path) -> str:
    return ".".join(("atlasmap", *path.relative_to(SRC).with_suffix("").parts))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_only_downwards(path):
    own = layer(module_of(path))
    for name in imports(path):
        if name.startswith("atlasmap"):
            assert layer(name) <= own, f"{path.name} imports {name}, which is above it"


def test_the_picture_in_the_docs_is_true():
    text = (SRC.parents[1] / "docs/inside.md").read_text()
    lines = text.split("```text\n")[1].split("```")[0].splitlines()
    drawn = [name for line in lines for name in line[:40].split()]
    kept = [name for names in reversed(LAYERS) for name in names if name != "__init__"]
    assert [set(drawn), len(drawn)] == [set(kept), len(kept)]
    level = {name: k for k, names in enumerate(reversed(LAYERS)) for name in names}
    assert [level[name] for name in drawn] == sorted(level[name] for name in drawn)


def test_models_know_no_anndata_and_the_package_no_snakemake():
    for path in FILES:
        names = {name.split(".")[0] for name in imports(path)}
        assert "snakemake" not in names and "pickle" not in names, path
        room = path.relative_to(SRC).parts[0]
        if room in ("models", "training"):
            assert not names & {"anndata", "scanpy"}, path
        if room == "data":
            assert "torch" not in names, path


def functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node


def test_no_function_over_60_lines():
    for path in FILES:
        for node in functions(path):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


def test_public_names_have_docstrings():
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_no_path_tricks_and_no_unsafe_loading():
    for path in FILES:
        text = path.read_text()
        for word in ("sys.path.", "pickle.load", "weights_only=False", "allow_pickle=True"):
            assert word not in text, f"{path}: {word}"


def loaded_by(code: str) -> set[str]:
    """Top-level modules loaded after running `code` in a fresh interpreter."""
    script = f"{code}\nimport sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_the_snakefile_and_help_need_no_heavy_packages():
    heavy = {"torch", "scanpy", "anndata", "pandas", "jax", "umap", "numba", "matplotlib"}
    assert not loaded_by("import atlasmap.config, atlasmap.data.sheet, atlasmap.files") & heavy
    assert not loaded_by("import atlasmap.commands.main") & heavy
    assert "torch" not in loaded_by("import atlasmap.commands.results, atlasmap.commands.figures")


def test_every_command_has_a_summary_and_resolves():
    from atlasmap.commands.main import COMMANDS, app

    for name, (_, summary) in COMMANDS.items():
        assert summary.endswith("."), name
        assert app[name].default_command is not None


FIRST_RUN = """
import sys
import anndata, torch
from atlasmap.data.registry import Registry
from atlasmap.mapping.reference import fit_scanvi, fit_scvi
from atlasmap.settings import ScanviSettings, ScviSettings, TrainSettings
from atlasmap.training.checkpoint import weights_hash
adata, cpu, train = anndata.read_h5ad(sys.argv[1]), torch.device("cpu"), TrainSettings(max_epochs=1)
registry = Registry.of(adata)
scvi = fit_scvi(adata, registry, ScviSettings(train=train), 0, cpu)[0]
print(weights_hash(scvi.model.state_dict()))
scanvi = fit_scanvi(adata, scvi, ScanviSettings(train=train), "fixed", 0, cpu)[0]
print(weights_hash(scanvi.model.state_dict()))
"""


def test_what_is_compiled_gives_the_bits_that_it_gives_when_it_was_kept(reference, tmp_path):
    """A call that is not inlined may be of one copy in the process that compiles and of another in
    those that load what it kept."""
    reference.write_h5ad(tmp_path / "reference.h5ad")
    command = [sys.executable, "-c", FIRST_RUN, str(tmp_path / "reference.h5ad")]
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kept"), "OMP_NUM_THREADS": "1"}
    runs = [subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
            for _ in range(2)]  # fmt: skip
    assert runs[0] == runs[1] and len(set(runs[0].split())) == 2


def test_what_was_kept_is_not_taken_when_what_it_inlines_has_changed(tmp_path):
    """As after an update in place."""
    shutil.copytree(SRC, tmp_path / "atlasmap", ignore=shutil.ignore_patterns("__pycache__"))
    drawn = "import torch; from atlasmap.models.compiled import draw; "
    drawn += "print(draw(torch.ones(2, 4), torch.zeros(2, 2), 0.0)[1].sum().item())"
    env = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "kept")}

    def said() -> float:
        run = subprocess.run([sys.executable, "-c", drawn], env=env, capture_output=True, text=True)
        return float(run.stdout)

    before = said()
    kernels = tmp_path / "atlasmap/models/compiled/arithmetic.py"
    text = kernels.read_text()
    kernels.write_text(text.replace("p = p * r * r + r + ONE", "p = p * r * r + r + ONE + ONE"))
    assert said() != before
    kernels.write_text(text)
    assert said() == before


COMPILED = """
import numpy as np
from atlasmap.labels.umap import fit_map, place
from atlasmap.settings import UmapSettings
x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
placed = place(fit_map(x, UmapSettings(), 0), x[:9] + 1)
import umap.umap_, pynndescent.pynndescent_ as nn
from numba.core.caching import NullCache
assert isinstance(nn.process_candidates._cache, NullCache)  # it takes a function
print(sum(umap.umap_.smooth_knn_dist.stats.cache_hits.values()), placed.tobytes().hex())
"""


def test_what_numba_compiles_is_compiled_once(tmp_path):
    before, bits = None, set()
    for known in (False, True):
        run = subprocess.run(
            [sys.executable, "-c", COMPILED], capture_output=True, text=True, check=True,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        )  # fmt: skip
        hits, placed = run.stdout.split()
        assert (int(hits) > 0) == known
        bits.add(placed)
        files = {path for path in tmp_path.rglob("*") if path.is_file()}
        assert before in (None, files)
        before = files
    assert len(before) > 5 and len(bits) == 1
