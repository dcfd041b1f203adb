"""The documentation says what is so: generated pages are fresh, commands are understood, files that
it links to are there."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from atlasmap.commands.main import app

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
