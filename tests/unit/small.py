"""Settings that unit tests train small models with, and a few helpers."""

import numpy as np
import pytest
import torch

from atlasmap.errors import AtlasmapError
from atlasmap.labels.calibrated import BATCHES, Calibration, View
from atlasmap.labels.confidence import Confidence
from atlasmap.labels.novelty import CutOffs
from atlasmap.labels.profiles import N_REGRESSED, Profiles
from atlasmap.models.operands import Logits
from atlasmap.settings import (
    DataConfig,
    DataSettings,
    ScanviSettings,
    ScviSettings,
    TrainSettings,
)

CPU = torch.device("cpu")
DEPTH = 256.0
CONFIG = DataConfig(data=DataSettings(n_top_genes=None))
SCVI = ScviSettings(n_hidden=16, n_latent=5, n_layers=2, train=TrainSettings(max_epochs=3))
SCANVI = ScanviSettings(train=TrainSettings(max_epochs=3))


def learned(labels: list[str], n_genes: int) -> tuple[Calibration, list[Profiles]]:
    """What a reference of these labels may have learned of itself."""
    n, row = len(labels), {"label": labels[0], "n": 40, "detected": 0.75, "low": 0.6, "high": 0.86}
    view = View(DEPTH, 150, [1.0, 1.0], CutOffs("misfit", 1.0, {labels[0]: 2.0}),
                Confidence([0.5, 1.5], 0.9, 0.8))  # fmt: skip
    made = Calibration(BATCHES, ["batch3"], labels, 32, 0.05, 0.9, 0.05, [view],
                       {"misfit": {labels[0]: 0.93}}, [row | {"auroc": 0.93}])  # fmt: skip
    shapes = (n, n_genes), n_genes, n_genes, (n, min(N_REGRESSED, n_genes)), n
    return made, [Profiles(DEPTH, *(np.ones(shape) for shape in shapes))]


def as_logits(values: torch.Tensor) -> Logits:
    """What a decoder's last layer gives, known (cells × genes)."""
    one = torch.eye(values.shape[1]).to(values)
    return Logits(values, one, one[:1] * 0, torch.zeros(len(values), dtype=torch.long))


def of_rate(rate: torch.Tensor) -> tuple[Logits, torch.Tensor]:
    """Logits and log library size that give these means (cells × genes)."""
    return as_logits(rate.log()), rate.sum(-1, keepdim=True).log()


def states_equal(a: dict, b: dict) -> bool:
    """Whether two states have the same names and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def caught(code: str, function, *args, **kwargs) -> AtlasmapError:
    """The error that must come (the package's, or the workflow's), with all its parts filled in."""
    with pytest.raises(Exception, match=code) as error:
        function(*args, **kwargs)
    assert error.value.code == code, str(error.value)
    assert error.value.expected and error.value.found and error.value.mend
    return error.value


def config(**data) -> DataConfig:
    top = {k: data.pop(k) for k in list(data) if k in DataConfig.__dataclass_fields__}
    return DataConfig(data=DataSettings(**({"n_top_genes": None} | data)), **top)
