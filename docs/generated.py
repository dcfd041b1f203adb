"""Pages of the documentation that are made from the code: config, commands, error codes."""

import ast
import io
import re
from pathlib import Path

from rich.console import Console

CODE = re.compile(r"[A-Z][A-Z0-9_]{4,}")
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/atlasmap"
COMMON = ROOT / "workflow/common"


def config_page() -> str:
    """The tables of config/README.md, which are made from the settings."""
    text = (ROOT / "config/README.md").read_text(encoding="utf-8")
    return text.replace("# Configuration", "# Configuration reference", 1)


def help_of(*words: str) -> str:
    """What `--help` prints."""
    from atlasmap.commands.main import app, show_whole_help

    show_whole_help([*words, "--help"])
    out = io.StringIO()
    app.help_print(list(words), console=Console(file=out, width=96, no_color=True))
    return out.getvalue().rstrip()


def commands_page() -> str:
    """Each command as `--help` shows it."""
    from atlasmap.commands.main import COMMANDS

    parts = ["# Command reference", "The rules of the workflow call these commands; each can be "
             "run by hand. The first line of a job's log is its command."]  # fmt: skip
    for name in sorted(COMMANDS):
        parts.append(f"## {name}\n\n```text\n{help_of(name)}\n```")
    return "\n\n".join(parts) + "\n"


def template(node: ast.expr) -> str:
    """A message as it is written, what is filled in shown as {…}."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    if isinstance(node, ast.IfExp):
        said = (template(part) for part in (node.body, node.orelse))
        return "; or ".join(part for part in said if part)
    return "…"


def said_in(call: ast.Call) -> tuple[str, str] | None:
    """What a call says was expected and mends it."""
    said = {key.arg: template(key.value) for key in call.keywords}
    return (said["expected"], said["mend"]) if {"expected", "mend"} <= set(said) else None


def helpers_in(tree: ast.Module) -> dict[str, tuple[list[str], tuple[str, str]]]:
    """Functions that are told the code of the error they raise: their parameters, and what the
    error says."""
    found = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for call in ast.walk(function):
                code = call.args[0] if isinstance(call, ast.Call) and call.args else None
                if getattr(code, "id", "") == "code" and (said := said_in(call)):
                    found[function.name] = [arg.arg for arg in function.args.args], said
    return found


def module_of(path: Path) -> str:
    """The name by which a file of the package is imported; of the workflow, its own."""
    top = PACKAGE.parent if path.is_relative_to(PACKAGE) else COMMON
    return ".".join(path.relative_to(top).with_suffix("").parts)


def said_by(call: ast.Call, helpers: dict) -> tuple[str, str] | None:
    """What the error that a call makes says was expected, and mends it."""
    if said := said_in(call):
        return said
    names, said = helpers.get(getattr(call.func, "id", ""), ([], None))
    given = dict(zip(names, call.args, strict=False))
    if said and said[0] == "…" and "expected" in given:
        return template(given["expected"]), said[1]
    return said


def errors_page() -> str:
    """Every error code, what was expected, and how to mend it."""
    files = [*sorted(PACKAGE.rglob("*.py")), *sorted(COMMON.glob("*.smk"))]
    trees = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in files}
    helpers, rows = {name: helpers_in(tree) for name, tree in trees.items()}, {}
    for name, tree in trees.items():
        known = dict(helpers[name])
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                known |= {key: said for key, said in helpers.get(node.module, {}).items()
                          if key in {alias.name for alias in node.names}}  # fmt: skip
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            said = said_by(call, known)
            for text in (text for arg in call.args for text in ast.walk(arg) if said):
                if isinstance(text, ast.Constant) and CODE.fullmatch(str(text.value)):
                    rows.setdefault(text.value, said)

    def cell(text: str) -> str:
        text = re.sub(r"(?:…\s*)+", "… ", " ".join(text.split())).strip()
        return re.sub(r"([|<>*_`\\{}\[\]])", r"\\\1", text)

    lines = [f"| `{code}` | {cell(expected)} | {cell(mend)} |"
             for code, (expected, mend) in sorted(rows.items())]  # fmt: skip
    return "\n".join(
        ["# Error codes", "",
         "An error is one block: its code, what was expected, what was found, how to mend it. "
         "Here … stands for what depends on your data.", "",
         "| code | expected | mend |", "|---|---|---|", *lines, "",
         "## Exit codes", "",
         "| exit code | kind of failure | tried again |", "|---|---|---|", *exit_codes(), ""]
    )  # fmt: skip


def exit_codes() -> list[str]:
    """A row an exit code."""
    from atlasmap.jobs.failures import EXIT_CODES, TRANSIENT

    return [
        f"| {code} | {kind.replace('_', ' ')} | {'yes' if kind in TRANSIENT else 'no'} |"
        for kind, code in EXIT_CODES.items()
    ]


def write_pages(folder: Path) -> None:
    """Write them, where they changed."""
    folder.mkdir(exist_ok=True)
    pages = {"config": config_page(), "commands": commands_page(), "errors": errors_page()}
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(__file__).with_name("reference"))
