"""Commands that fetch, check and prepare data."""

import json
from pathlib import Path

from cyclopts import Parameter

from atlasmap.settings import Config, SimulateSettings


def read_config(config: Path) -> tuple[Config, list]:
    """The resolved config that the workflow passes on (JSON): settings and data sets."""
    from atlasmap.config import checked, load_config
    from atlasmap.data.sheet import Dataset

    given = json.loads(config)
    return load_config(given)
