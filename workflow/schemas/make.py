"""Write the schemas beside this file from the settings classes (`make schemas`)."""

from pathlib import Path

import yaml

from atlasmap.config import schema
from atlasmap.data.sheet import Dataset
from atlasmap.settings import Config

SCHEMAS = {"config.schema.yaml": Config, "datasets.schema.yaml": Dataset}


def text(cls: type) -> str:
    """A class's schema as YAML."""
    note = "# Made from src/atlasmap by `make schemas`; a test keeps them in step.\n"
    return note + yaml.safe_dump(schema(cls), sort_keys=False, width=100, allow_unicode=True)


if __name__ == "__main__":
    for name, cls in SCHEMAS.items():
        (Path(__file__).parent / name).write_text(text(cls), encoding="utf-8")
