"""What is called the same as scvi-tools, and what is not."""

import numpy as np
import pandas as pd
import pytest
from small import SCANVI, SCVI

from atlasmap.errors import AtlasmapError
from atlasmap.parity.compare import check_split
from atlasmap.parity.pairs import FEW, PAIR_COLUMNS, as_markdown, summary
from atlasmap.parity.peer import CLASSIFIER, Trained, scvi_tools, train_arguments
from atlasmap.settings import SurgerySettings


def pairs(metric: str, ours: list, theirs: list, **where) -> pd.DataFrame:
    """A pair a seed."""
    start = dict.fromkeys(PAIR_COLUMNS, "") | {"model": "scVI", "metric": metric, "n": 60} | where
    rows = [
        start | {"seed": seed, "ours": a, "theirs": b}
        for seed, (a, b) in enumerate(zip(ours, theirs, strict=True))
    ]
    return pd.DataFrame(rows, columns=PAIR_COLUMNS)


def test_the_elbo_is_held_to_one_per_cent_a_pair():
    close = summary(pairs("elbo", [700, 702, 709], [701, 700, 715])).iloc[0]
    assert close["within"] and close["largest_relative"] == pytest.approx(6 / 715)
    # one pair of three is off; the means agree
    off = pairs("elbo", [708, 695, 700], [700, 703, 700])
    assert not summary(off).iloc[0]["within"] and summary(off).iloc[0]["strict"]
    few = summary(off.assign(n=FEW - 1)).iloc[0]
    assert not few["within"] and not few["strict"]


def test_other_metrics_are_held_to_two_standard_errors():
    ours, theirs = [0.80, 0.82, 0.84], [0.81, 0.83, 0.85]
    row = summary(pairs("accuracy", ours, theirs)).iloc[0]
    error = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 3)
    assert row["se"] == pytest.approx(error) and row["errors"] == pytest.approx(-0.01 / error)
    assert row["within"]
    assert not summary(pairs("accuracy", ours, [x + 0.05 for x in ours])).iloc[0]["within"]
    assert summary(pairs("accuracy", [1.0] * 3, [1.0] * 3)).iloc[0]["within"]
    assert not summary(pairs("accuracy", [1.0] * 3, [0.9] * 3)).iloc[0]["within"]


def test_batches_mapped_one_by_one_are_averaged_over_their_cells():
    where = {"model": "scANVI", "strategy": "per_batch"}
    large = pairs("elbo", [100.0, 100.0], [100.0, 100.0], batch="a", **where).assign(n=90)
    small = pairs("elbo", [110.0, 110.0], [100.0, 100.0], batch="b", **where).assign(n=10)
    row = summary(pd.concat([large, small])).iloc[0]
    assert row["ours"] == pytest.approx(101) and row["n_pairs"] == 2
    assert row["largest_relative"] == pytest.approx(0.01)
    assert row["largest_of_a_batch"] == pytest.approx(0.1)


def test_the_table_says_what_is_not_within():
    whole = pd.concat([pairs("elbo", [700, 700], [700, 700]), pairs("ece", [0.1, 0.1], [0.2, 0.2])])
    text = as_markdown(summary(whole))
    assert text.count("**no**") == 1 and "scvi-tools" in text


def test_other_validation_cells_are_no_parity():
    check_split(np.array([3, 1]), Trained(None, np.array([1, 3])), "scVI")
    with pytest.raises(AtlasmapError, match="PARITY_SPLIT"):
        check_split(np.array([3, 2]), Trained(None, np.array([1, 3])), "scVI")


def test_settings_are_handed_on_and_surgery_does_not_decay():
    told = train_arguments(SCVI.train, SCVI.train.weight_decay)
    assert told["max_epochs"] == 3 and told["plan_kwargs"]["weight_decay"] == 1e-6
    assert told["plan_kwargs"]["n_epochs_kl_warmup"] == 400 and told["plan_kwargs"]["eps"] == 0.01
    assert train_arguments(SurgerySettings(), 0.0)["plan_kwargs"]["weight_decay"] == 0
    assert None not in train_arguments(SCANVI.train, 1e-6).values()
    assert CLASSIFIER["prefix"] == {"classifier_parameters": {"logits": False}}


def test_without_scvi_tools_it_says_where_to_get_it():
    try:
        import scvi  # noqa: F401
    except ImportError:
        with pytest.raises(AtlasmapError, match="PEER_MISSING") as error:
            scvi_tools()
        assert "make parity" in error.value.mend
