"""The atlas explorer: what the page holds, and what it does in a browser without a network."""

import base64
import gzip
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import anndata
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import requests
from browser import opened
from scipy import sparse

from atlasmap.commands.pages import explore
from atlasmap.errors import AtlasmapError
from atlasmap.explorer.columns import Category, Number, columns_of
from atlasmap.explorer.genes import expression, markers
from atlasmap.explorer.page import explorer_page
from atlasmap.labels.palette import VERDICTS, colors_of_labels
from atlasmap.settings import ExplorerSettings

GENES = [f"gene{k}" for k in range(30)]


def atlas(n_labels: int, n: int = 1200) -> anndata.AnnData:
    """Labels as clouds on a ring; two reference batches and a query batch."""
    rng = np.random.default_rng(0)
    label = np.arange(n) % n_labels
    angle = 2 * np.pi * label / n_labels
    middle = 10 * np.stack([np.cos(angle), np.sin(angle)], 1)
    names = np.array([f"type {k:02} <&> of some long name" for k in range(n_labels)])
    batch = np.array(["r1", "r2", "q, 1"])[rng.integers(0, 3, n)]
    query = batch == "q, 1"
    obs = pd.DataFrame(
        {
            "batch": batch,
            "role": np.where(query, "query", "reference"),
            "label": np.where(query, "Unknown", names[label]),
            "predicted_label": names[label],
            "verdict": np.where(query, rng.choice(["confident", "novel"], n), "reference"),
            "calibrated_confidence": np.where(query, rng.random(n), np.nan),
            "knn_label": names[label],
            "barcode": [f"cell{k}" for k in range(n)],
        },
        index=[f"cell{k}" for k in range(n)],
    )
    for key in ("batch", "role", "label", "predicted_label", "verdict", "knn_label"):
        obs[key] = pd.Categorical(obs[key])
    out = anndata.AnnData(obs=obs, obsm={"X_umap": middle + rng.normal(size=(n, 2))})
    colors = colors_of_labels({*names, "Unknown"}, "Unknown")
    for key in ("label", "predicted_label", "knn_label"):
        out.uns[f"{key}_colors"] = [colors[name] for name in out.obs[key].cat.categories]
    out.uns["verdict_colors"] = [VERDICTS[name] for name in out.obs["verdict"].cat.categories]
    return out


def prepared(whole: anndata.AnnData, folder: Path) -> list[Path]:
    """Counts of the atlas's cells as the workflow has them: gene k is that of label k."""
    rng, paths = np.random.default_rng(1), []
    for name, mask in (("reference", whole.obs["role"] == "reference"),
                       ("query", whole.obs["role"] == "query")):  # fmt: skip
        part = whole[mask.to_numpy()]
        rate = np.full((part.n_obs, len(GENES)), 0.5)
        rate[np.arange(part.n_obs), part.obs["predicted_label"].cat.codes % len(GENES)] = 9
        counts = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
        cells = anndata.AnnData(counts, part.obs[["batch"]], pd.DataFrame(index=GENES))
        paths.append(folder / f"{name}.h5ad")
        cells.write_h5ad(paths[-1])
    return paths


@pytest.fixture(scope="module", params=[10, 60])
def page_file(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(f"labels{request.param}")
    whole = atlas(request.param)
    text = explorer_page(whole, "An <atlas>", prepared(whole, folder), ExplorerSettings())
    (folder / "explorer.html").write_text(text, encoding="utf-8")
    return folder / "explorer.html"


def held(text: str) -> tuple[dict, bytes]:
    """What a page is told, and its cells."""
    about = re.search(r'id="about">(.*?)</script>', text, re.S).group(1)
    cells = re.search(r'id="cells">(.*?)</script>', text, re.S).group(1)
    return json.loads(about), gzip.decompress(base64.b64decode(cells))


def part(raw: bytes, where: dict) -> np.ndarray:
    return np.frombuffer(raw[where["at"] : where["at"] + where["bytes"]], where["type"])


def test_the_page_holds_every_cell_once_with_its_values(page_file):
    whole = atlas(10 if "labels10" in str(page_file) else 60)
    about, raw = held(page_file.read_text(encoding="utf-8"))
    where = about["ids"]
    ids = raw[where["at"] : where["at"] + where["bytes"]].decode().split("\0")
    assert sorted(ids) == sorted(whole.obs_names) and ids != list(whole.obs_names)
    columns = {column["key"]: column for column in about["columns"]}
    label = columns["predicted_label"]
    said = np.array(label["names"])[part(raw, label["data"])]
    assert (said == whole.obs["predicted_label"][ids].to_numpy()).all()
    number = columns["calibrated_confidence"]
    steps, exact = part(raw, number["data"]), whole.obs["calibrated_confidence"][ids].to_numpy()
    assert ((steps == 65_535) == np.isnan(exact)).all()
    shown = number["low"] + steps / 65_534 * (number["high"] - number["low"])
    known = ~np.isnan(exact)
    np.testing.assert_allclose(shown[known], exact[known], atol=1e-4)
    at = np.stack([part(raw, about[axis]) for axis in "xy"], 1)
    exact = whole[ids].obsm["X_umap"]
    assert np.abs(at).max() <= 1
    np.testing.assert_allclose(np.corrcoef(at.ravel(), exact.ravel())[0, 1], 1, atol=1e-3)


def test_the_same_atlas_gives_the_same_page():
    pages = {explorer_page(atlas(10), "a", [], ExplorerSettings()) for _ in range(2)}
    assert len(pages) == 1


def test_of_many_cells_a_sample_is_shown_and_said():
    text = explorer_page(atlas(10, 3000), "a", [], ExplorerSettings(max_cells=500))
    about, _ = held(text)
    assert abs(about["n"] - 500) < 20 and about["n_all"] == 3000
    assert "A sample of" in text


def test_columns_with_gaps_and_odd_types_are_numbers_or_left_out():
    obs = pd.DataFrame(
        {"label": pd.Categorical(["a", None]), "n": [1, 2], "flag": [True, False],
         "depth": [1.0, np.inf], "barcode": ["x", "y"]}
    )  # fmt: skip
    found = {column.key: column for column in columns_of(obs, {})}
    assert set(found) == {"label", "n", "flag", "depth"} and found["label"].names == ["a", "none"]
    assert isinstance(found["n"], Category) and found["flag"].names == ["False", "True"]
    assert isinstance(found["depth"], Number) and found["depth"].packed()[1] == 65_535


def test_markers_are_the_genes_that_tell_labels(tmp_path):
    whole = atlas(10)
    counts = prepared(whole, tmp_path)
    found = markers(counts, whole.obs, whole.obs["predicted_label"].cat.codes.to_numpy())
    assert sorted(found) == sorted(GENES[:10])


def test_expression_is_that_of_the_cell_and_missing_where_it_was_not_measured(tmp_path):
    whole = atlas(10)
    counts = prepared(whole, tmp_path)
    query = anndata.read_h5ad(counts[1])[:, GENES[:-1]].copy()
    query.write_h5ad(counts[1])
    (first, last) = expression(counts, whole.obs, ["gene0", "gene29"])
    of_query = (whole.obs["role"] == "query").to_numpy()
    assert np.isnan(last.values[of_query]).all() and not np.isnan(last.values[~of_query]).any()
    dense = np.asarray(query.X.todense())
    exact = np.log1p(1e4 * dense[:, 0] / dense.sum(1))
    found = pd.Series(first.values, whole.obs_names)[query.obs_names]
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_genes_go_by_id_or_symbol(tmp_path):
    whole = atlas(10)
    counts = prepared(whole, tmp_path)
    for path in counts:
        cells = anndata.read_h5ad(path)
        cells.var["symbol"] = [name.upper() for name in cells.var_names]
        cells.write_h5ad(path)
    by_symbol, by_id = (expression(counts, whole.obs, [name])[0] for name in ("GENE3", "gene3"))
    assert by_symbol.title == by_id.title == "GENE3"
    np.testing.assert_array_equal(by_symbol.values, by_id.values)


def test_proteins_can_be_coloured_by():
    whole = atlas(10, 200)
    whole.obsm["denoised_protein"] = np.arange(400.0).reshape(200, 2)
    whole.uns["protein_names"] = np.array(["CD3", "CD4"])
    about, _ = held(explorer_page(whole, "a", [], ExplorerSettings()))
    (first, _) = (column for column in about["columns"] if column["group"] == "Proteins")
    assert first["title"] == "CD3" and first["high"] == pytest.approx(np.log1p(398))


def test_a_gene_that_no_file_has_is_an_error(tmp_path):
    whole = atlas(10)
    with pytest.raises(AtlasmapError, match="EXPLORER_GENES"):
        explorer_page(whole, "a", prepared(whole, tmp_path), ExplorerSettings(genes=("other",)))


def ready(page) -> None:
    page.wait_for_function("document.body.dataset.ready === 'yes'", timeout=60_000)
    page.wait_for_timeout(300)


def pixels(page) -> np.ndarray:
    """The map as it is on the screen (rows × columns × RGB, 0 to 1)."""
    shot = page.locator("#canvas").screenshot()
    return matplotlib.image.imread(io.BytesIO(shot))[..., :3]


def colored(image: np.ndarray) -> float:
    """Share of pixels with a colour."""
    return float((image.max(2) - image.min(2) > 0.15).mean())


def lasso_nearly_everything(page) -> None:
    box = page.locator("#canvas").bounding_box()
    left, top, right, low = (box["x"] + 4, box["y"] + 4, box["x"] + box["width"] - 4,
                             box["y"] + box["height"] - 4)  # fmt: skip
    page.click("#lasso")
    page.mouse.move(left, low)
    page.mouse.down()
    for x, y in ((left, top + 50), (right, top + 50), (right, low), (left + 9, low)):
        page.mouse.move(x, y, steps=12)
    page.mouse.up()
    page.wait_for_function("Number(document.body.dataset.selected) > 0", timeout=20_000)


@pytest.mark.parametrize("width", [1280, 390])
def test_it_draws_and_fits_the_window(page_file, width):
    with opened(page_file, width) as (page, _):
        ready(page)
        assert colored(pixels(page)) > 0.01
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.title() == "An <atlas>: atlas explorer"


def test_the_legend_searches_and_isolates(page_file):
    with opened(page_file) as (page, _):
        ready(page)
        before = colored(pixels(page))
        n = page.locator("#names li").count()
        page.fill("#find", "TYPE 03")
        assert page.locator("#names li:visible").count() == 1 < n
        page.click("#names li:visible button")
        page.wait_for_timeout(500)
        shown = int(page.evaluate("document.body.dataset.visible"))
        assert shown == 1200 / n
        assert 0 < colored(pixels(page)) < before / 2
        page.fill("#find", "nothing like it")
        assert page.locator("#none").is_visible()
        page.click("#all")
        assert int(page.evaluate("document.body.dataset.visible")) == 1200
        page.uncheck("#roles input[value=query]")
        assert 0 < int(page.evaluate("document.body.dataset.visible")) < 1200


def test_a_lasso_says_what_it_holds_and_gives_the_ids(page_file, tmp_path):
    with opened(page_file) as (page, _):
        ready(page)
        lasso_nearly_everything(page)
        n = int(page.evaluate("document.body.dataset.selected"))
        assert 1100 < n <= 1200  # but those below the tools
        head, *rows = page.eval_on_selector_all(
            "#composition tr", "rows => rows.map(row => [...row.cells].map(c => c.textContent))"
        )
        counts = np.array([[int(text.replace(",", "")) for text in row[1:]] for row in rows])
        assert counts[:, 0].sum() == n and head[:2] == ["Predicted label", "all"]
        assert counts.shape[1] == 4 and (counts[:, 1:].sum(1) == counts[:, 0]).all()
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(tmp_path / "ids.csv")
        ids = pd.read_csv(tmp_path / "ids.csv")
        whole = atlas(10)
        assert len(set(ids["cell_id"])) == len(ids) == n
        batch = whole.obs["batch"].astype(str)
        assert (ids["batch"] == batch[ids["cell_id"]].to_numpy()).all()
        page.click("#shown")
        page.wait_for_function("document.body.dataset.selected === '1200'")
        page.click("#clear")
        page.wait_for_function("document.body.dataset.selected === '0'")


def test_cells_are_colored_by_what_is_asked(page_file):
    with opened(page_file) as (page, _):
        ready(page)
        gene = page.get_attribute("#color optgroup:last-child option", "value")
        seen = set()
        for key in ("predicted_label", "verdict", "calibrated_confidence", "batch", gene):
            page.select_option("#color", key)
            page.wait_for_function("key => document.body.dataset.painted === key", arg=key)
            page.wait_for_timeout(300)
            seen.add(pixels(page).tobytes())
            is_number = key in ("calibrated_confidence", gene)
            assert page.locator("#gradient").is_visible() == is_number
        assert len(seen) == 5
        page.evaluate(  # as fast as arrow keys
            """() => { for (const key of ["batch", "role", "verdict", "knn_label"]) {
              const select = document.getElementById("color");
              select.value = key;
              select.dispatchEvent(new Event("change"));
            } }"""
        )
        page.wait_for_function("() => document.body.dataset.painted === 'knn_label'")
        page.select_option("#color", "verdict")
        page.wait_for_timeout(300)
        image = pixels(page)
        novel = np.array([int(VERDICTS["novel"][k : k + 2], 16) for k in (1, 3, 5)]) / 255
        assert (np.abs(image - novel).max(2) < 0.2).any()


def test_a_card_says_what_a_cell_is(page_file):
    with opened(page_file) as (page, _):
        ready(page)
        box = page.locator("#canvas").bounding_box()
        for x in np.linspace(0.1, 0.9, 60):  # until there is a cell under the pointer
            page.mouse.move(box["x"] + x * box["width"], box["y"] + 0.5 * box["height"])
            page.wait_for_timeout(30)
            if page.locator("#hover").is_visible():
                break
        text = page.inner_text("#hover")
        assert text.startswith("cell") and "Predicted label" in text and "<&>" in text


def test_it_is_served_on_the_loopback_until_ctrl_c(tmp_path):
    whole = atlas(10, 300)
    whole.write_h5ad(tmp_path / "atlas.h5ad")
    command = [
        sys.executable,
        "-m",
        "atlasmap.commands.main",
        "explore",
        str(tmp_path),
        "--port",
        "0",
    ]
    # Ctrl-C must reach it even if these tests run in the background.
    how = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how) as server:
        url = server.stdout.readline().split()[0]
        page = requests.get(url, timeout=30)
        local = requests.get(url.replace("127.0.0.1", "localhost"), timeout=30)
        other = requests.get(url, headers={"Host": "evil.example:80"}, timeout=30)
        server.send_signal(signal.SIGINT)
        server.wait(20)
    assert url.startswith("http://127.0.0.1:") and server.returncode == 0
    about, _ = held(page.text)
    assert about["n"] == 300 and about["title"] == tmp_path.name
    assert local.text == page.text and other.status_code == 403 and "atlas" not in other.text


def test_serving_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(AtlasmapError, match="ATLAS_MISSING"):
        explore(tmp_path / "none")
    (tmp_path / "atlas.h5ad").touch()
    (tmp_path / "explorer.html").touch()
    for port in (99_999, -1):
        with pytest.raises(AtlasmapError, match="PORT_INVALID"):
            explore(tmp_path, port=port)


def test_a_name_with_a_line_break_keeps_ids_in_step():
    whole = atlas(10, 300)
    whole.obs_names = ["a\nb", *whole.obs_names[1:]]
    page = explorer_page(whole, "a", [], ExplorerSettings())
    about, raw = held(page)
    where = about["ids"]
    ids = raw[where["at"] : where["at"] + where["bytes"]].decode().split("\0")
    assert len(ids) == 300 and "a\nb" in ids
