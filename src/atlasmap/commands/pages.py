"""Commands that write or serve the HTML pages: explorer and report."""

import http.server
import json
import tempfile
from functools import partial
from pathlib import Path

import anndata

from atlasmap.errors import AtlasmapError
from atlasmap.files import write_text
from atlasmap.settings import ExplorerSettings
from atlasmap.training.stopping import Stopped

PAGE = "explorer.html"


def write_explorer(
    atlas: Path,
    *,
    out: Path,
    title: str,
    counts: list[Path] | None = None,
    explorer: ExplorerSettings = ExplorerSettings(),
) -> None:
    """Write the atlas explorer, a single HTML page that needs no server.

    Example: atlasmap write-explorer results/pbmc68k/atlas.h5ad --title PBMC --out explorer.html

    Parameters
    ----------
    atlas
        atlas.h5ad.
    out
        Page to write (.html).
    title
        Title of the page.
    counts
        Prepared reference and query batches (.h5ad), for colouring cells by gene expression.
    """
    from atlasmap.explorer.page import explorer_page

    page = explorer_page(anndata.read_h5ad(atlas), title, counts or [], explorer)
    write_text(out, page)


def write_report(
    folder: Path,
    *,
    out: Path,
    variant: str,
    strategy: str,
    seed: int = 0,
    config: str = "{}",
    captions: Path | None = None,
) -> None:
    """Write the report of an atlas, a single HTML page made from its result files.

    Example: atlasmap write-report results/pbmc68k --variant fixed --strategy per_batch
    --out report.html

    Parameters
    ----------
    folder
        Folder results/{atlas}.
    out
        Page to write (.html).
    variant
        Classifier variant of the final mapping.
    strategy
        Strategy of the final mapping.
    seed
        Seed of the final mapping.
    config
        The run's config (JSON), shown in the report.
    captions
        Folder with captions of figures ({figure}.rst).
    """
    from atlasmap.report.atlas import report_page
    from atlasmap.report.found import Final, Found

    found = Found(folder, Final(seed, variant, strategy), json.loads(config))
    page = report_page(found, captions)
    write_text(out, page)


def explore(atlas: Path, *, port: int = 8000) -> None:
    """Serve the explorer of an atlas to browsers on this machine, until Ctrl-C.

    Example: atlasmap explore results/pbmc68k

    Parameters
    ----------
    atlas
        Folder results/{atlas}, or an atlas.h5ad.
    port
        Port on 127.0.0.1; 0: any free port.
    """
    file = atlas / "atlas.h5ad" if atlas.is_dir() else atlas
    if not file.is_file():
        raise AtlasmapError(
            "ATLAS_MISSING",
            expected="results/{atlas} with an atlas.h5ad, or an atlas.h5ad",
            found=str(atlas),
            mend="run snakemake first, or name the folder of another atlas",
        )
    made = file.with_name(PAGE)
    if atlas.is_dir() and made.is_file() and made.stat().st_mtime >= file.stat().st_mtime:
        serve(made, port)
        return
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / PAGE
        write_explorer(file, out=page, title=file.parent.name)
        serve(page, port)


LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves `page` for every path, without logging. Requests whose Host header is not the loopback
    are refused, so that no other site can read the page by DNS rebinding."""

    def __init__(self, *given, page: Path):
        self.page = page
        super().__init__(*given)

    def do_GET(self) -> None:
        if self.headers.get("Host", "").rpartition(":")[0].strip("[]") in LOOPBACK:
            super().do_GET()
        else:
            self.send_error(403, "Only localhost is served")

    def translate_path(self, path: str) -> str:
        return str(self.page)

    def log_message(self, format: str, *given) -> None:
        pass


def serve(page: Path, port: int) -> None:
    """Serve `page` on the loopback until Ctrl-C. Raises PORT_INVALID, PORT_TAKEN."""
    if not 0 <= port < 2**16:
        raise AtlasmapError(
            "PORT_INVALID",
            expected="a port from 1 to 65535, or 0 for any that is free",
            found=f"--port {port}",
            mend="give another: --port 8001",
        )
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), partial(Quiet, page=page))
    except OSError as error:
        raise AtlasmapError(
            "PORT_TAKEN",
            expected=f"port {port} of 127.0.0.1 to be free",
            found=str(error),
            mend="give another: --port 8001, or 0 for any",
        ) from error
    with server:
        print(f"http://127.0.0.1:{server.server_port}/{PAGE}   (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except (KeyboardInterrupt, Stopped):
            print()
