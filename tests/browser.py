"""A headless Chromium that is refused every request but the page itself."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PLACES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without a graphics card WebGL is computed.
HOW = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@dataclass
class Heard:
    """What a page asked the network for, and what it complained of."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def opened(file: Path, width: int = 1280, height: int = 800) -> Iterator[tuple]:
    """The page of a file in a window of a size, and what was heard of it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = next(filter(None, map(shutil.which, PLACES)), None)
    if found is None:
        pytest.skip("needs Chromium (Debian's package chromium)")
    heard = Heard()
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=found, args=list(HOW))
        page = browser.new_page(viewport={"width": width, "height": height})

        def refuse(route) -> None:
            if route.request.url.startswith(("file:", "data:", "blob:")):
                route.continue_()
            else:
                heard.requests.append(route.request.url)
                route.abort()

        page.route("**/*", refuse)
        page.on("console", lambda said: said.type == "error" and heard.errors.append(said.text))
        page.on("pageerror", lambda error: heard.errors.append(str(error)))
        page.goto(file.as_uri())
        yield page, heard
        browser.close()
    assert not heard.requests and not heard.errors, heard
