"""The documentation says what is so: generated pages are fresh, commands are understood, files that
it links to are there."""

import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from parts import read_sheet

from atlasmap.commands.main import app
from atlasmap.config import checked, read_config
from atlasmap.data.prepare import prepare_reference, sizes_of_batches
from atlasmap.data.sheet import Dataset
from atlasmap.data.sources import pbmc68k
from atlasmap.settings import Config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "config/README.md", "envs/README.md")
] + sorted((ROOT / "docs").glob("*.md"))
FENCED = re.compile(r"^```[a-z]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def generated():
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs/generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_fresh(tmp_path):
    generated().write_pages(tmp_path)
    for path in tmp_path.iterdir():
        kept = ROOT / "docs/reference" / path.name
        assert kept.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), "run make docs"


def test_every_error_code_in_the_code_is_in_the_list():
    page = generated().errors_page()
    said = set(re.findall(r"\| `([A-Z_0-9]+)` \|", page))
    raised = set()
    for path in (ROOT / "src/atlasmap").rglob("*.py"):
        raised |= set(re.findall(r'AtlasmapError\(\s*"([A-Z_0-9]+)"', path.read_text()))
    assert raised <= said and len(said) > 60


def commands() -> list[tuple[str, str]]:
    """(page, command) of each atlasmap command in code, lines that go on joined."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        spans = re.findall(r"`(atlasmap [a-z-]+\s[^`]+)`", text)
        for block in [*FENCED.findall(text), *(" ".join(span.split()) for span in spans)]:
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                words = line.split("  #")[0].strip().removeprefix(".venv/bin/")
                words = words.removeprefix(".venv-parity/bin/")
                if words.startswith("atlasmap ") and "…" not in words:
                    found.append((page.name, re.split(r"\s{3,}", words)[0]))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_that_pages_show_are_understood(page, command):
    words = shlex.split(command)[1:]
    if words != ["--install-completion"]:
        app.parse_args([word for word in words if word != "--json_log"], exit_on_error=False)


def test_there_are_commands_to_check():
    assert len(commands()) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_pages_link_to_is_there(page):
    links = LINK.findall(page.read_text(encoding="utf-8"))
    files = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in files if not (page.parent / link).exists()] == []


@pytest.mark.skipif(not shutil.which("Rscript"), reason="no R here")
def test_the_join_in_r_is_that_of_the_docs(tmp_path):
    """On an object that, as Seurat's and SingleCellExperiment, has columns and takes a `$`."""
    page = (ROOT / "docs/your_data.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```r\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "results/mine").mkdir(parents=True)
    rows = [("new:b", "b", "new", "NK"), ("old:a", "a", "old", "B"), ("new:a", "a", "new", "T")]
    table = pd.DataFrame(rows, columns=["cell_id", "barcode", "dataset", "pooled_label"])
    table.to_csv(tmp_path / "results/mine/labels.csv", index=False)
    (tmp_path / "join.R").write_text(
        'object <- structure(list(), class = "cells", cells = c("a", "b", "c"))\n'
        'dimnames.cells <- function(x) list(NULL, attr(x, "cells"))\n'
        f"{block}\ncat(object$pooled_label)\n"
    )
    done = subprocess.run(["Rscript", "join.R"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "T NK NA", done.stderr


def test_the_readmes_sample_counts_are_those_of_the_demo(tmp_path):
    """Cells, batches, labels and genes are the same everywhere; scores are not."""
    config = checked(Config, read_config(ROOT / "config/config.yaml"), "the config", "X")
    rows = [Dataset(**vars(row)) for row in read_sheet(ROOT / config.datasets)]
    pbmc68k().write_h5ad(tmp_path / "demo.h5ad")
    reference, query = (
        [row for row in rows if row.role == role] for role in ("reference", "query")
    )
    made = prepare_reference(reference, [tmp_path / "demo.h5ad"] * len(reference), config)
    sizes = [sizes_of_batches(row, tmp_path / "demo.h5ad", config) for row in query]
    n_query, batches = sum(sum(part.values()) for part in sizes), sum(map(len, sizes))
    facts, text = made.facts, (ROOT / "README.md").read_text(encoding="utf-8")
    n = facts["n_cells"]
    assert (
        f"reference of {n} cells, {len(facts['batches'])} batches, {len(facts['labels'])} labels, "
        f"{facts['n_genes']} genes;\n{n_query} query cells in {batches} batches"
    ) in text
    sample = dict(re.findall(r"^ *\w+ .* (train|validation|query) +(\d+) ", text, re.MULTILINE))
    assert int(sample["train"]) + int(sample["validation"]) == n and int(sample["query"]) == n_query
    verdicts = re.findall(r"^ *\w+ per_batch (\d+) +(\d+) +(\d+) +(\d+)$", text, re.MULTILINE)
    assert verdicts and all(int(a) == sum(map(int, rest)) == n_query for a, *rest in verdicts)
