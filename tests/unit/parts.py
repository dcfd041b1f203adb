"""The workflow's common parts, which are plain Python, loaded by path."""

import functools
import io
import json
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import yaml
from snakemake.sourcecache import LocalSourceFile

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "workflow/schemas"
SNAKEFILE = (ROOT / "workflow/Snakefile").read_text(encoding="utf-8")
INCLUDED = re.findall(r'^( *)include: "(common/.*|\.\./src/.*)"$', SNAKEFILE, re.MULTILINE)
CHECKED = [path for inside, path in INCLUDED if not inside and "terminal" not in path]
COMMON = [path for inside, path in INCLUDED if inside]  # what follows from a config
ROWS = ["r\tr.h5ad\treference\tb\tl\t", "q\tq.h5ad\tquery\tb\t\tt"]


@functools.cache
def compiled(path: Path):
    return compile(path.read_text(encoding="utf-8"), str(path), "exec")


def load(*paths: str, **given) -> SimpleNamespace:
    """What files that workflow/Snakefile includes define, in their order, over names that others
    would have defined. Those of the package are imported."""
    namespace = dict(given)
    for path in paths:
        if path.startswith("../src/"):
            name = ".".join(Path(path).with_suffix("").parts[2:])
            namespace |= {k: v for k, v in vars(import_module(name)).items() if k[:2] != "__"}
        else:
            exec(compiled(ROOT / "workflow" / path), namespace)
    return SimpleNamespace(**namespace)


def schema(name: str) -> dict:
    return yaml.safe_load((SCHEMAS / f"{name}.schema.yaml").read_text(encoding="utf-8"))


CHECKS = load(*CHECKED)
OF_CONFIG, OF_ROW = schema("config"), schema("datasets")


def load_config(given: dict) -> SimpleNamespace:
    return CHECKS.load_config(given, OF_CONFIG, str(SCHEMAS / "config.schema.yaml"))


def read_sheet(path: Path, *, trained: bool = False) -> list[SimpleNamespace]:
    return CHECKS.read_sheet(path, OF_ROW, trained)


@functools.cache
def as_json(path: str) -> str:
    """A schema as JSON, which is read in no time."""
    return json.dumps(yaml.safe_load(Path(path).read_text(encoding="utf-8")))


class Checkpoints:
    """Checkpoints that have run: batches of each query data set, and the contract."""

    def __init__(self, folder: Path, batches: dict[str, list[str]], contract: dict):
        self.folder, self.batches, self.contract = folder, batches, contract
        self.find_batches = SimpleNamespace(get=self.batches_of)
        self.write_contract = SimpleNamespace(get=self.contract_of)

    def written(self, name: str, content) -> SimpleNamespace:
        path = self.folder / name
        path.write_text(json.dumps(content))
        return SimpleNamespace(output=[str(path)])

    def batches_of(self, atlas: str, dataset: str) -> SimpleNamespace:
        return self.written(f".{dataset}.json", self.batches[dataset])

    def contract_of(self, atlas: str) -> SimpleNamespace:
        return self.written(".contract.json", self.contract)


def atlas_of(
    folder: Path, config: dict, rows: list[str] = ROWS, batches: dict | None = None,
    prefix: str = "", skip_validation: bool = False,
) -> SimpleNamespace:  # fmt: skip
    """What the workflow makes of a config and a sheet in `folder`, the working directory."""
    header = "id\tpath\trole\tbatch_key\tlabel_key\ttruth_key"
    (folder / "sheet.tsv").write_text("\n".join([header, *rows]) + "\n")
    for row in rows:
        if "://" not in row.split("\t")[1]:
            (folder / row.split("\t")[1]).touch()
    found = {"reference": {"batches": {"a": 300, "b": 200}, "n_cells": 500}}
    found |= {"queries": {"x": {"n_cells": 50}, "y": {"n_cells": 60}}}
    names = {
        "config": {"atlas": "t", "datasets": "sheet.tsv"} | config,
        "workflow": SimpleNamespace(
            current_basedir=LocalSourceFile(str(ROOT / "workflow/common")),
            sourcecache=SimpleNamespace(
                open=lambda file: io.StringIO(as_json(file.get_path_or_uri(True)))
            ),
            modifier=SimpleNamespace(
                skip_validation=skip_validation,
                path_modifier=SimpleNamespace(replace_prefix=lambda path: prefix + path),
            ),
            overwrite_configfiles=[],
            is_main_process=True,
            resource_settings=SimpleNamespace(default_resources={}, overwrite_resources={}),
        ),
        "shell": SimpleNamespace(prefix=lambda text: None),
        "checkpoints": Checkpoints(folder, batches or {"q": ["y", "x"]}, found),
        "report": lambda path, **kwargs: path,
        "ancient": str,
    }
    return load(*CHECKED, *COMMON, **names)
