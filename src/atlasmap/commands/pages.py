"""Commands that make pages for people."""

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
    """Write the atlas explorer: one page that opens from disk.

    Example: atlasmap write-explorer results/pbmc68k/atlas.h5ad --title PBMC --out explorer.html

    Parameters
    ----------
    atlas
        atlas.h5ad.
    out
        The page (.html).
    title
        What the page is called.
    counts
        Prepared reference and query batches (.h5ad), for genes.
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
    """Write the report of an atlas: one page that opens from disk, from result files alone.

    Example: atlasmap write-report results/pbmc68k --variant fixed --strategy per_batch
    --out report.html

    Parameters
    ----------
    folder
        results/{atlas}.
    out
        The page (.html).
    variant
        Variant of the mapping whose atlas is the answer.
    strategy
        Its strategy.
    seed
        Its seed.
    config
        The run's config (JSON), to be shown.
    captions
        Folder of {figure}.rst.
    """
    from atlasmap.report.atlas import report_page
    from atlasmap.report.found import Final, Found

    found = Found(folder, Final(seed, variant, strategy), json.loads(config))
    page = report_page(found, captions)
    write_text(out, page)


def explore(atlas: Path, *, port: int = 8000) -> None:
    """Serve the explorer of an atlas on this machine, until Ctrl-C.

    Example: atlasmap explore results/pbmc68k

    Parameters
    ----------
    atlas
        results/{atlas}, or an atlas.h5ad.
    port
        Port on 127.0.0.1; 0: any that is free.
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
    """Serves one page, whatever is asked for, and says nothing of it; to this machine alone, by
    whatever name another site would have it called."""

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
    """Serve `page` on the loopback; returns at Ctrl-C. Raises PORT_INVALID, PORT_TAKEN."""
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
