"""Parameters that several commands share, with their help texts."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from atlasmap.data.sheet import Dataset
from atlasmap.settings import Device

Covariates = Annotated[list[str] | None, Parameter(help="Covariate columns of obs.")]
DataFile = Annotated[Path, Parameter(help="File of the data set.")]
Facts = Annotated[Path, Parameter(help="What was found and decided (.json).")]
TreeFile = Annotated[
    Path | None,
    Parameter(
        help="Sheet of labels and their parents (columns child, parent), or of labels and levels."
    ),
]
Latents = Annotated[Path, Parameter(help="latent.h5ad of the mappings.")]
NewBundle = Annotated[
    Path,
    Parameter(help="Folder of the bundle; the latent goes beside it as reference_latent.h5ad."),
]
OnDevice = Annotated[Device, Parameter(help="Where to compute.")]
Probe = Annotated[
    Path | None,
    Parameter(help="Prepared reference (.h5ad): some of its cells are embedded before and after."),
]
Prepared = Annotated[list[Path], Parameter(help="Prepared query batches (.h5ad).")]
Queries = Annotated[Path, Parameter(help="Prepared query batches (.h5ad).")]
Reference = Annotated[Path, Parameter(help="Prepared reference (.h5ad).")]
ReferenceBundle = Annotated[Path, Parameter(help="The reference's bundle.")]
ReferenceLatent = Annotated[
    Path, Parameter(help="reference_latent.h5ad of the bundle mapped onto.")
]
Row = Annotated[Dataset, Parameter(help="Its row of the sheet (JSON).")]
Seed = Annotated[
    int, Parameter(help="Seed of weights or start values, split, minibatches and noise.")
]
Table = Annotated[Path, Parameter(help="Table (.csv).")]
Unlabeled = Annotated[str, Parameter(help="What cells without a label are called.")]
WithTruth = Annotated[
    list[Path], Parameter(help="Prepared query batches, for their known labels (scoring alone).")
]
