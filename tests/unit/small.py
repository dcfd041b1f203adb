"""Settings that unit tests train small models with, and two helpers."""

import torch

from atlasmap.models.operands import Logits
from atlasmap.settings import (
    DataConfig,
    DataSettings,
    ScanviSettings,
    ScviSettings,
    TrainSettings,
)

CPU = torch.device("cpu")
CONFIG = DataConfig(data=DataSettings(n_top_genes=None))
SCVI = ScviSettings(n_hidden=16, n_latent=5, n_layers=2, train=TrainSettings(max_epochs=3))
SCANVI = ScanviSettings(train=TrainSettings(max_epochs=3))


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
