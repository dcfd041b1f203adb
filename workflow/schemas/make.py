"""Write the schemas beside this file from the settings classes (`make schemas`)."""

import json
from pathlib import Path

import yaml

from atlasmap.config import schema
from atlasmap.data.sheet import Dataset
from atlasmap.settings import Config

README = Path(__file__).parents[2] / "config" / "README.md"
START, END = "<!-- made by `make schemas` -->", "<!-- end -->"
SCHEMAS = {"config.schema.yaml": Config, "datasets.schema.yaml": Dataset}


def text(cls: type) -> str:
    """A class's schema as YAML."""
    note = "# Made from src/atlasmap by `make schemas`; a test keeps them in step.\n"
    return note + yaml.safe_dump(schema(cls), sort_keys=False, width=100, allow_unicode=True)


def rows(block: dict, prefix: str = "") -> list[str]:
    """A Markdown table row for each key of a schema's block, nested blocks below it."""
    out = []
    required = block.get("required", [])
    for key, value in sorted(block["properties"].items(), key=lambda item: item[0] not in required):
        name = f"{prefix}{key}"
        said = " ".join(value["description"].split()).replace("|", "\\|")
        if "properties" in value:
            out += [f"| **`{name}`** | | {said} |", *rows(value, f"{name}.")]
        else:
            default = "required" if key in required else f"`{json.dumps(value['default'])}`"
            out.append(f"| `{name}` | {default} | {said} |")
    return out


def readme() -> str:
    """config/README.md with its tables of keys made anew."""
    head, _, rest = README.read_text(encoding="utf-8").partition(START)
    tail = rest.partition(END)[2]
    tables = []
    for title, cls in [("Keys of the config", Config), ("Columns of the sheet", Dataset)]:
        table = "\n".join(rows(schema(cls)))
        tables.append(f"## {title}\n\n| key | default | what |\n|---|---|---|\n{table}")
    return f"{head}{START}\n\n" + "\n\n".join(tables) + f"\n\n{END}{tail}"


if __name__ == "__main__":
    for name, cls in SCHEMAS.items():
        (Path(__file__).parent / name).write_text(text(cls), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")
