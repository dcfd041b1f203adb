"""Frozen settings: config key = dataclass field = command-line flag = key in a bundle's JSON.

The docstring under a field is its description in the config schema and in `--help`. This file
imports neither torch nor scanpy: every Slurm job parses the Snakefile, which reads it.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

CLOSED = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

# Bounds keep out what is a slip of the keyboard, not what is large.
Count = Annotated[int, Field(ge=1, le=10**9)]
Epochs = Annotated[int, Field(ge=1, le=10**6)]
Width = Annotated[int, Field(ge=1, le=2**14)]
Layers = Annotated[int, Field(ge=1, le=100)]
Minibatch = Annotated[int, Field(ge=3, le=10**6)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(gt=0, le=10)]
Decay = Annotated[float, Field(ge=0, le=10)]
Norm = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Where = Literal["encoder", "decoder", "both", "none"]
Variant = Literal["prefix", "fixed", "linear"]
Surgery = Literal["per_batch", "joint", "frozen"]
Strategy = Literal[Surgery, "de_novo"]
Device = Literal["auto", "cpu", "cuda", "any"]

# Raised by hand when a model computes something else from the same settings; recorded in bundles.
# The workflow has the same numbers, and those of its other stages, as rerun triggers.
NUMERICS = {"scvi": 5, "scanvi": 5, "totalvi": 6, "surgery": 7}

# Columns of obs that prepared files and atlases have of their own.
RESERVED = {
    "batch", "label", "truth", "dataset", "role", "split", "barcode", "predicted_label",
    "confidence", "entropy", "runner_up", "runner_up_probability", "knn_label", "knn_uncertainty",
    "calibrated_confidence", "prediction_set", "prediction_set_size", "common_ancestor", "distance",
    "safe_label", "safe_level", "safe_probability", "label_given", "truth_given",
    "misfit", "novelty", "strangeness", "verdict", "seed_agreement", "shifted", "pooled_label",
    "pooled_confidence", "genes_label", "genes_confidence",
}  # fmt: skip
ObsColumns = Annotated[list[str], Field(json_schema_extra={"reserved": sorted(RESERVED)})]


@dataclass(frozen=True, config=CLOSED)
class DataSettings:
    """What is checked and chosen before anything trains."""

    n_top_genes: Count | None = 2000
    """Highly variable genes (seurat_v3, by batch) the reference keeps; null keeps all."""
    genes_from: Literal["reference", "all"] = "reference"
    """Cells that these genes are chosen from. all: the query's too, so that a new query trains the
    reference anew (for de_novo)."""
    min_cells_per_label: Count = 3
    """Labels with fewer reference cells become unlabelled, and are listed in contract.json."""
    min_cells_per_batch: Annotated[int, Field(ge=3, le=10**9)] = 3
    """A batch with fewer cells is an error."""
    mask_proteins: list[str] = field(default_factory=list)
    """Batches whose proteins are treated as not measured (to see how well they are imputed)."""
    min_gene_overlap: Share = 0.8
    """Least share of the reference's genes a query must have; the missing are filled with zeros."""
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Memory (GB) that a job may use which prepares, trains or maps: counts with no room in it stay
    on disk, and cells are then shuffled by blocks. null: 60 % of what the job has."""


@dataclass(frozen=True, config=CLOSED)
class FitSettings:
    """How anything is optimised (Adam)."""

    batch_size: Minibatch = 128
    """Cells a minibatch."""
    learning_rate: Rate = 1e-3
    """Adam's step size."""
    adam_eps: Rate = 0.01
    """Adam's epsilon."""
    early_stopping: bool = False
    """Stop when the validation ELBO (of a classifier alone: its cross-entropy) has not improved for
    `early_stopping_patience` validations."""
    early_stopping_patience: Epochs = 45
    """Validations without improvement before stopping."""


@dataclass(frozen=True, config=CLOSED)
class VaeFitSettings(FitSettings):
    """How a model of counts is optimised, trained or in surgery (KL warm-up by epoch)."""

    n_epochs_kl_warmup: Epochs | None = 400
    """Epochs over which the KL terms' weight rises from 0 to 1; null: it is 1 throughout."""
    n_steps_kl_warmup: Count | None = None
    """The same in optimiser steps, instead of epochs."""
    train_size: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of cells trained on; the rest validates."""
    check_val_every_n_epoch: Epochs = 1
    """Epochs between validations."""
    reduce_lr_on_plateau: bool = False
    """Multiply the learning rate by 0.6 after 30 validations without a better ELBO."""
    gradient_clip: Norm | None = None
    """Largest norm of the whole gradient; null: no clipping."""


@dataclass(frozen=True, config=CLOSED)
class TrainSettings(VaeFitSettings):
    """How a reference's model is optimised."""

    max_epochs: Epochs | None = None
    """Epochs; null: 100 for scANVI; for scVI 400 up to 20,000 cells, 20,000 / cells × 400 above."""
    weight_decay: Decay = 1e-6
    """L2 penalty added to the gradient."""


@dataclass(frozen=True, config=CLOSED)
class ScviSettings:
    """Architecture and training of scVI (Lopez et al. 2018). Defaults: the arches setting."""

    n_hidden: Width = 128
    """Width of the hidden layers."""
    n_latent: Width = 30
    """Dimensions of the latent space."""
    n_layers: Layers = 2
    """Hidden layers of encoder and decoder."""
    dropout_rate: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout in the encoder (and scANVI's classifier)."""
    gene_likelihood: Literal["nb", "zinb", "poisson"] = "nb"
    """Distribution of counts: negative binomial, zero-inflated, or Poisson."""
    dispersion: Literal["gene", "gene-batch"] = "gene"
    """One inverse dispersion a gene, or one a gene and batch."""
    use_observed_lib_size: bool = True
    """Library size is the sum of the cell's counts; false: it is inferred."""
    encode_covariates: bool = True
    """The encoder sees batch and covariates; without it surgery cannot move the query's latent."""
    deeply_inject_covariates: bool = True
    """Covariates enter every layer; false: the first layer of each network alone."""
    use_batch_norm: Where = "none"
    """Networks with batch norm."""
    use_layer_norm: Where = "both"
    """Networks with layer norm."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Training of scVI."""


@dataclass(frozen=True, config=CLOSED)
class ScanviSettings:
    """scANVI (Xu et al. 2021) on top of a trained scVI, whose architecture it takes over."""

    classification_ratio: Annotated[float, Field(ge=0, le=1e9)] = 50.0
    """Weight of the cross-entropy beside the unlabelled loss."""
    n_samples_per_label: Count | None = None
    """Labelled cells drawn per label and epoch; null: all."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Training of scANVI."""


@dataclass(frozen=True, config=CLOSED)
class TotalviTrainSettings(TrainSettings):
    """How totalVI is optimised: its KL terms and proteins are warmed up by step."""

    n_epochs_kl_warmup: Epochs | None = None
    """Epochs over which the weight of KL terms and proteins rises from 0 to 1; null: by steps."""
    n_steps_kl_warmup: Count | None = None
    """The same in optimiser steps; null: 0.75 a cell."""
    batch_size: Minibatch = 256
    """Cells a minibatch."""
    learning_rate: Rate = 4e-3
    """Adam's step size."""
    early_stopping: bool = True
    """Stop when the validation ELBO has not improved for `early_stopping_patience` validations."""
    reduce_lr_on_plateau: bool = True
    """Multiply the learning rate by 0.6 after 30 validations without a better ELBO."""


@dataclass(frozen=True, config=CLOSED)
class HeadTrainSettings(FitSettings):
    """How totalVI's classifier is optimised, on draws from the posterior of labelled cells (the
    split is totalVI's)."""

    max_epochs: Epochs = 100
    """Epochs."""
    weight_decay: Decay = 1e-6
    """L2 penalty added to the gradient."""
    early_stopping: bool = True
    """Stop when the validation cross-entropy has not improved for `early_stopping_patience`
    epochs."""
    early_stopping_patience: Epochs = 20
    """Epochs without improvement before stopping."""


@dataclass(frozen=True, config=CLOSED)
class TotalviSettings:
    """Architecture and training of totalVI (Gayoso et al. 2021). Defaults: the arches setting."""

    n_hidden: Width = 256
    """Width of the hidden layers."""
    n_latent: Width = 20
    """Dimensions of the latent space."""
    n_layers_encoder: Layers = 2
    """Hidden layers of the encoder."""
    n_layers_decoder: Layers = 2
    """Hidden layers of each decoder."""
    dropout_rate_encoder: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout in the encoder."""
    dropout_rate_decoder: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout in the decoders."""
    gene_likelihood: Literal["nb", "zinb"] = "nb"
    """Distribution of gene counts: negative binomial, or zero-inflated."""
    latent_distribution: Literal["normal", "ln"] = "normal"
    """Normal, or logistic normal (the decoders see its softmax)."""
    gene_dispersion: Literal["gene", "gene-batch"] = "gene"
    """One inverse dispersion a gene, or one a gene and batch."""
    protein_dispersion: Literal["protein", "protein-batch"] = "protein"
    """One inverse dispersion a protein, or one a protein and batch."""
    use_observed_lib_size: bool = True
    """Library size is the sum of the cell's counts; false: it is inferred."""
    encode_covariates: bool = True
    """The encoder sees batch and covariates; without it surgery cannot move the query's latent."""
    use_batch_norm: Where = "none"
    """Networks with batch norm."""
    use_layer_norm: Where = "both"
    """Networks with layer norm."""
    background_activation: Literal["softplus", "exp"] = "softplus"
    """What makes the background's standard deviation positive (exp: scvi-tools before 1.2)."""
    input_scaling: Literal["mean", "none"] = "mean"
    """The encoder sees log(1 + count / (1 + the cell's mean)), genes and proteins apart; none:
    log(1 + count) (scvi-tools before 1.3.1)."""
    empirical_protein_background_prior: bool | None = None
    """Start the background's prior where mixtures fitted to single cells have it; null: with more
    than 10 proteins."""
    adversarial: bool | None = None
    """An adversary keeps batches from being told apart by the latent while the KL terms warm up;
    null: where a batch lacks a protein."""
    train: TotalviTrainSettings = field(default_factory=TotalviTrainSettings)
    """Training of totalVI."""
    classifier: HeadTrainSettings = field(default_factory=HeadTrainSettings)
    """Training of the classifier on the latent, which stays as it is."""


@dataclass(frozen=True, config=CLOSED)
class SurgerySettings(VaeFitSettings):
    """scArches surgery (Lotfollahi et al. 2021): only the new batches' columns train, no decay."""

    max_epochs: Epochs = 100
    """Epochs."""
    surgery_dropout: bool = False
    """Train with dropout on; off is what scvi-tools does (eval mode)."""


@dataclass(frozen=True, config=CLOSED)
class TotalviSurgerySettings(SurgerySettings):
    """Surgery of totalVI: rows for the new batches in all tables; proteins warm up by step."""

    n_epochs_kl_warmup: Epochs | None = None
    """Epochs over which the weight of KL terms and proteins rises from 0 to 1; null: by steps."""
    n_steps_kl_warmup: Count | None = None
    """The same in optimiser steps; null: 0.75 a cell."""
    max_epochs: Epochs = 200
    """Epochs."""
    batch_size: Minibatch = 256
    """Cells a minibatch."""
    learning_rate: Rate = 4e-3
    """Adam's step size."""
    as_scvi_tools: bool = False
    """Leave efficiency and dispersion of new batches as they start, as scvi-tools does (only for
    comparisons with it)."""


@dataclass(frozen=True, config=CLOSED)
class DenoiseSettings:
    """What totalVI says of genes and proteins, written beside each bundle of CITE-seq."""

    n_samples: Count = 25
    """Draws from each cell's posterior."""
    interval: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the draws inside an interval."""
    rna: bool = True
    """Genes too; false: proteins alone (cells × genes, three times, is large)."""


@dataclass(frozen=True, config=CLOSED)
class MappingSettings:
    """How query batches are spread over jobs; no result depends on it."""

    batches_per_job: Count = 1
    """Query batches that one `per_batch` job maps, one after the other (GPU jobs of hundreds of
    small batches: 20 or more)."""


@dataclass(frozen=True, config=CLOSED)
class TransferSettings:
    """Second opinion: weighted k-nearest-neighbour transfer in the latent (HLCA)."""

    n_neighbors: Count = 50
    """Reference neighbours a query cell asks."""


@dataclass(frozen=True, config=CLOSED)
class CalibrationSettings:
    """How far labels are to be trusted: learned on reference cells held out, never on a query."""

    scheme: Literal["batches", "validation", "none"] = "batches"
    """batches: every batch of the reference is held out once; a model is trained without it, and it
    is mapped onto that model as queries are (of one batch, parts); validation: the reference's
    validation cells, of batches that the model has seen (no further training, but too kind); none:
    labels are left as the classifier gives them."""
    folds: Count | None = None
    """Groups of batches, each held out from a model of its own; null: each batch up to 4 groups, of
    20,000 reference cells and more 2."""
    n_draws: Count = 32
    """Draws from each cell's posterior that the classifier is averaged over."""
    risk: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Fraction of confident cells whose label may be wrong."""
    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of cells that are not confident whose prediction set must hold the true label."""
    false_novel: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Share of known held-out cells that may be called novel."""
    min_cells: Count = 20
    """Fewest labelled cells to learn from."""
    min_cells_per_label: Count = 20
    """Held-out cells from which a label is said to be found, or not, if it were missing."""


@dataclass(frozen=True, config=CLOSED)
class UmapSettings:
    """The map: fitted on reference cells alone, so it never moves."""

    max_cells: Count = 200_000
    """Most reference cells the map is fitted on; the rest are placed into it."""
    n_neighbors: Annotated[int, Field(ge=2, le=10**9)] = 15
    """Neighbours a cell."""
    min_dist: Annotated[float, Field(ge=0, le=10)] = 0.5
    """Least distance of points in the map."""


@dataclass(frozen=True, config=CLOSED)
class BenchmarkSettings:
    """Second opinions and scib-metrics."""

    scope: Literal["none", "labels", "full"] = "full"
    """none: neither; labels: second opinions on query cells; full: scib-metrics, too."""
    split_above: Count = 50_000
    """Up to so many cells all embeddings of a seed are scored in one job; above, one job each."""
    n_neighbors: Annotated[int, Field(ge=3, le=10**9)] = 90
    """Neighbours a cell (kBET and LISI use up to so many)."""
    max_cells: Annotated[int, Field(ge=100, le=10**9)] = 50_000
    """More cells than this are scored by samples of so many, each batch and label in proportion."""
    n_samples: Annotated[int, Field(ge=2, le=10**9)] = 3
    """Samples; their scores' mean is given, with its 95 % interval (`_low`, `_high`)."""


@dataclass(frozen=True, config=CLOSED)
class ExplorerSettings:
    """The atlas explorer (explorer.html)."""

    genes: tuple[str, ...] = ()
    """Genes to colour cells by; none: some that tell labels apart."""
    max_cells: Annotated[int, Field(ge=100, le=10**9)] = 500_000
    """Of more cells than this a sample is shown, each batch and label in proportion."""


@dataclass(frozen=True, config=CLOSED)
class CardSettings:
    """What a model card says that the data do not."""

    description: str = ""
    """What the reference is, in a sentence or two."""
    license: str = "unknown"
    """Licence under which the model is shared, as Hugging Face spells it (cc-by-4.0)."""
    tissue: tuple[str, ...] = ()
    """Tissues."""
    n_samples: Count = 5
    """Posterior predictive samples that the coefficients of variation are averaged over."""
    max_cells: Count = 50_000
    """Most cells that the posterior predictive checks look at."""


@dataclass(frozen=True, config=CLOSED)
class SimulateSettings:
    """An atlas of our own making: a cell-type tree, Zipf abundances, batch and chemistry shifts."""

    n_cells: Count = 6000
    """Cells in all."""
    n_genes: Annotated[int, Field(ge=50, le=10**9)] = 1500
    """Genes."""
    n_reference_batches: Count = 6
    """Reference batches."""
    n_query_batches: Count = 2
    """Query batches, of another chemistry (a stronger shift)."""
    n_lineages: Annotated[int, Field(ge=2, le=10**9)] = 5
    """Lineages of the cell-type tree."""
    n_types_per_lineage: Annotated[int, Field(ge=1, le=10**9)] = 3
    """Cell types a lineage."""
    depth: Annotated[float, Field(gt=0, le=1e6)] = 450.0
    """Median counts of a reference cell, of all genes together."""
    proteins: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Proteins (CITE-seq), with known background and foreground; 0: none."""
    missing_proteins: Annotated[int, Field(ge=0, le=10**9)] = 3
    """Proteins that the first reference batch and the first query batch lack."""
    seed: Seed = 0
    """Seed of the simulation."""


@dataclass(frozen=True, config=CLOSED)
class ReferenceSettings:
    """A trained reference to map onto, instead of reference rows in the sheet."""

    bundle: str | None = None
    """Folder of a bundle: of another run, or imported."""
    scvi_tools: str | None = None
    """Folder or model.pt that scvi-tools saved (or the URL of model.pt): imported first."""
    adata: str | None = None
    """Cells of the scvi-tools reference, counts or minified (.h5ad or URL); null: adata.h5ad
    beside it."""

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return bool(self.bundle or self.scvi_tools)


@dataclass(frozen=True, config=CLOSED)
class FinalSettings:
    """Which mapping is *the* atlas."""

    variant: Variant | None = None
    """Classifier variant; null: fixed if it is among `variants`, else the first of them."""
    strategy: Strategy | None = None
    """Strategy; null: the first of `strategies`."""
    seed: Seed | None = None
    """Seed; null: the first of `seeds`."""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class DataConfig:
    """Keys of the config that decide what is checked, called a label, and given to a model."""

    modality: Literal["rna", "citeseq"] = "rna"
    """What was measured: RNA, or RNA and proteins (totalVI instead of scVI and scANVI)."""
    counts: Literal["integer", "corrected_float"] = "integer"
    """corrected_float admits non-integer counts (SoupX, CellBender)."""
    labels: Literal["given", "none"] = "given"
    """none: there are no labels anywhere; stages that need them are left out."""
    unlabeled_category: str = "Unknown"
    """What cells without a label are called."""
    unlabeled_values: list[str] = field(default_factory=list)
    """Other values of the label column that mean: no label (`Unknown`, too, must be listed)."""
    keep_labels: list[str] = field(default_factory=list)
    """Labels that are meant, though they read like none (doublet, low quality, unassigned)."""
    categorical_covariates: ObsColumns = field(default_factory=list)
    """Columns of obs the model conditions on besides the batch."""
    continuous_covariates: ObsColumns = field(default_factory=list)
    """Numeric columns of obs the model conditions on."""
    label_levels: ObsColumns = field(default_factory=list)
    """Further label columns of the reference (coarser or finer levels): kNN transfers each, and the
    classifier's probabilities are summed at those that are coarser."""
    data: DataSettings = field(default_factory=DataSettings)
    """Checks and gene choice."""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Config(DataConfig):
    """One atlas: what it is made of and how."""

    atlas: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the atlas: its folder under results/."""
    datasets: str
    """Sheet of data sets (tab separated); relative to the working directory or the repository."""
    data_dir: str | None = None
    """Folder that relative paths in the sheet start from; null: the sheet's own folder."""
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    """A trained reference to map onto."""
    device: Device = "auto"
    """auto: CUDA if there, in a cluster job with a GPU CUDA or an error; cpu; cuda; any."""
    variants: list[Variant] = field(default_factory=lambda: ["prefix", "fixed", "linear"])
    """scANVI's classifiers to train and compare."""
    strategies: list[Strategy] = field(default_factory=lambda: ["per_batch", "joint"])
    """How query batches are mapped."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """Replicates of training and mapping."""
    final: FinalSettings = field(default_factory=FinalSettings)
    """Which variant, strategy and seed is the answer."""
    scvi: ScviSettings = field(default_factory=ScviSettings)
    """scVI."""
    totalvi: TotalviSettings = field(default_factory=TotalviSettings)
    """totalVI (modality: citeseq)."""
    scanvi: ScanviSettings = field(default_factory=ScanviSettings)
    """scANVI, all variants."""
    scanvi_prefix: dict = field(default_factory=dict)
    """What differs from `scanvi` for the prefix variant."""
    scanvi_fixed: dict = field(default_factory=dict)
    """What differs from `scanvi` for the fixed variant."""
    scanvi_linear: dict = field(default_factory=dict)
    """What differs from `scanvi` for the linear variant."""
    surgery: SurgerySettings = field(default_factory=SurgerySettings)
    """Mapping."""
    totalvi_surgery: TotalviSurgerySettings = field(default_factory=TotalviSurgerySettings)
    """Mapping of CITE-seq."""
    mapping: MappingSettings = field(default_factory=MappingSettings)
    """Jobs of the mapping."""
    denoise: DenoiseSettings = field(default_factory=DenoiseSettings)
    """Denoised genes and proteins (CITE-seq)."""
    checkpoint_minutes: Annotated[float, Field(gt=0, le=1e5)] = 5.0
    """Minutes between checkpoints of a training."""
    label_tree: str | None = None
    """Sheet of labels and their parents (columns child, parent), or of labels and their levels (the
    name, then columns with `level` in their names, topmost first): probabilities are summed at each
    level, ambiguous cells are given their labels' common ancestor, and reference cells with a label
    above others are trained on at that depth. null: label_levels, or the Cell Ontology where labels
    are its terms; none: labels exclude each other."""
    transfer: TransferSettings = field(default_factory=TransferSettings)
    """Label transfer."""
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    """How far to trust a label."""
    umap: UmapSettings = field(default_factory=UmapSettings)
    """The map."""
    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    """scib-metrics."""
    card: CardSettings = field(default_factory=CardSettings)
    """Model cards."""
    explorer: ExplorerSettings = field(default_factory=ExplorerSettings)
    """The atlas explorer."""
    simulate: SimulateSettings = field(default_factory=SimulateSettings)
    """The simulated atlas, for sheets that name `builtin:simulated`."""
