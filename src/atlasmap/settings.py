"""Frozen settings: config key = dataclass field = command-line flag = key in a bundle's JSON.

The docstring under a field is its description in the config schema and in `--help`. This file
imports neither torch nor scanpy: every Slurm job parses the Snakefile, which reads it.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

CLOSED = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

# Bounds reject typing errors; they do not limit the size of an atlas.
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

# Version of each model's numerics, raised by hand when the same settings give other results;
# recorded in bundles. workflow/common/flags.smk repeats these numbers as rerun triggers.
NUMERICS = {"scvi": 5, "scanvi": 5, "totalvi": 6, "surgery": 7}

# Columns of obs that atlasmap itself writes into prepared files and atlases.
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
    """Checks of the data and choice of genes, before training."""

    n_top_genes: Count | None = 2000
    """Number of highly variable genes (seurat_v3, per batch) to keep; null: all common genes."""
    genes_from: Literal["reference", "all"] = "reference"
    """Cells from which highly variable genes are chosen. reference: those of the reference; all:
    also those of the query, for de_novo; a new query batch then retrains the reference."""
    min_cells_per_label: Count = 3
    """Labels with fewer reference cells are dropped: their cells become unlabelled. contract.json
    lists these labels."""
    min_cells_per_batch: Annotated[int, Field(ge=3, le=10**9)] = 3
    """Fewest cells per batch; a smaller batch is an error."""
    mask_proteins: list[str] = field(default_factory=list)
    """Names of batches whose proteins are treated as not measured, to test imputation."""
    min_gene_overlap: Share = 0.8
    """Smallest fraction of the reference's genes that a query must have; missing genes are filled
    with zeros."""
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Memory (GB) that one job may use for preparing, training or mapping. Counts that do not fit
    stay on disk, and cells are then shuffled in blocks. null: 60 % of the job's memory."""


@dataclass(frozen=True, config=CLOSED)
class FitSettings:
    """Optimisation by Adam, common to all trainings."""

    batch_size: Minibatch = 128
    """Cells per minibatch."""
    learning_rate: Rate = 1e-3
    """Learning rate of Adam."""
    adam_eps: Rate = 0.01
    """Epsilon of Adam, added to the denominator."""
    early_stopping: bool = False
    """Stop when the validation ELBO has not improved for `early_stopping_patience` validations; for
    totalVI's classifier the cross-entropy takes the place of the ELBO."""
    early_stopping_patience: Epochs = 45
    """Validations without improvement after which training stops, if `early_stopping`."""


@dataclass(frozen=True, config=CLOSED)
class VaeFitSettings(FitSettings):
    """Optimisation of a VAE, in training or in surgery (KL warm-up by epoch)."""

    n_epochs_kl_warmup: Epochs | None = 400
    """Epochs over which the weight of the KL terms rises from 0 to 1; null: the weight is 1
    throughout, unless `n_steps_kl_warmup` is set."""
    n_steps_kl_warmup: Count | None = None
    """Optimiser steps over which the weight of the KL terms rises from 0 to 1; set, it replaces
    `n_epochs_kl_warmup`. null: warm-up by epochs."""
    train_size: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Fraction of cells to train on; the others are validation cells."""
    check_val_every_n_epoch: Epochs = 1
    """Validate every this many epochs, and after the last."""
    reduce_lr_on_plateau: bool = False
    """Multiply the learning rate by 0.6 after 30 validations without a better ELBO."""
    gradient_clip: Norm | None = None
    """Largest norm of the gradient over all parameters; null: no clipping."""


@dataclass(frozen=True, config=CLOSED)
class TrainSettings(VaeFitSettings):
    """Training of a reference model."""

    max_epochs: Epochs | None = None
    """Number of epochs. null: 100 for scANVI; for scVI and totalVI 400 up to 20,000 cells, above
    that 20,000 / cells × 400."""
    weight_decay: Decay = 1e-6
    """Weight decay of Adam: coefficient of the L2 penalty, added to the gradient."""


@dataclass(frozen=True, config=CLOSED)
class ScviSettings:
    """Architecture and training of scVI (Lopez et al. 2018). Defaults suit scArches."""

    n_hidden: Width = 128
    """Width of the hidden layers."""
    n_latent: Width = 30
    """Dimensions of the latent space."""
    n_layers: Layers = 2
    """Number of hidden layers of the encoder, and of the decoder."""
    dropout_rate: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout rate in the encoder and in scANVI's classifier."""
    gene_likelihood: Literal["nb", "zinb", "poisson"] = "nb"
    """Distribution of counts: negative binomial (nb), zero-inflated negative binomial (zinb), or
    poisson."""
    dispersion: Literal["gene", "gene-batch"] = "gene"
    """One inverse dispersion per gene, or one per gene and batch."""
    use_observed_lib_size: bool = True
    """Take the sum of a cell's counts as its library size; false: infer it as a latent variable."""
    encode_covariates: bool = True
    """Give batch and covariates to the encoder, too; without this, surgery cannot change the
    query's latent and is refused."""
    deeply_inject_covariates: bool = True
    """Give covariates to every hidden layer; false: only to the first layer of each network."""
    use_batch_norm: Where = "none"
    """Networks that use batch norm."""
    use_layer_norm: Where = "both"
    """Networks that use layer norm."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Training of scVI."""


@dataclass(frozen=True, config=CLOSED)
class ScanviSettings:
    """scANVI (Xu et al. 2021), started from a trained scVI and with the same architecture."""

    classification_ratio: Annotated[float, Field(ge=0, le=1e9)] = 50.0
    """Weight of the classifier's cross-entropy in the loss, relative to the unlabelled loss."""
    n_samples_per_label: Count | None = None
    """Most labelled cells sampled per label and epoch for the cross-entropy; null: all."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Training of scANVI."""


@dataclass(frozen=True, config=CLOSED)
class TotalviTrainSettings(TrainSettings):
    """Training of totalVI, with warm-up of the KL terms and the protein loss by step."""

    n_epochs_kl_warmup: Epochs | None = None
    """Epochs over which the weight of the KL terms and the protein loss rises from 0 to 1; null:
    warm-up by steps (`n_steps_kl_warmup`)."""
    n_steps_kl_warmup: Count | None = None
    """Optimiser steps over which that weight rises from 0 to 1; set, it replaces
    `n_epochs_kl_warmup`. If both are null: 0.75 × number of cells."""
    batch_size: Minibatch = 256
    """Cells per minibatch."""
    learning_rate: Rate = 4e-3
    """Learning rate of Adam."""
    early_stopping: bool = True
    """Stop when the validation ELBO has not improved for `early_stopping_patience` validations."""
    reduce_lr_on_plateau: bool = True
    """Multiply the learning rate by 0.6 after 30 validations without a better ELBO."""


@dataclass(frozen=True, config=CLOSED)
class HeadTrainSettings(FitSettings):
    """Training of totalVI's classifier, on samples from the posterior of labelled cells; training
    and validation cells are those of totalVI."""

    max_epochs: Epochs = 100
    """Number of epochs."""
    weight_decay: Decay = 1e-6
    """Weight decay of Adam: coefficient of the L2 penalty, added to the gradient."""
    early_stopping: bool = True
    """Stop when the validation cross-entropy has not improved for `early_stopping_patience`
    epochs."""
    early_stopping_patience: Epochs = 20
    """Epochs without improvement after which training stops, if `early_stopping`."""


@dataclass(frozen=True, config=CLOSED)
class TotalviSettings:
    """Architecture and training of totalVI (Gayoso et al. 2021). Defaults suit scArches."""

    n_hidden: Width = 256
    """Width of the hidden layers."""
    n_latent: Width = 20
    """Dimensions of the latent space."""
    n_layers_encoder: Layers = 2
    """Number of hidden layers of the encoder."""
    n_layers_decoder: Layers = 2
    """Number of hidden layers of each decoder."""
    dropout_rate_encoder: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout rate in the encoder."""
    dropout_rate_decoder: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout rate in the decoders."""
    gene_likelihood: Literal["nb", "zinb"] = "nb"
    """Distribution of gene counts: negative binomial (nb), or zero-inflated negative binomial
    (zinb)."""
    latent_distribution: Literal["normal", "ln"] = "normal"
    """Distribution of the latent: normal, or logistic normal (ln), whose softmax the decoders
    see."""
    gene_dispersion: Literal["gene", "gene-batch"] = "gene"
    """One inverse dispersion per gene, or one per gene and batch."""
    protein_dispersion: Literal["protein", "protein-batch"] = "protein"
    """One inverse dispersion per protein, or one per protein and batch."""
    use_observed_lib_size: bool = True
    """Take the sum of a cell's counts as its library size; false: infer it as a latent variable."""
    encode_covariates: bool = True
    """Give batch and covariates to the encoder, too; without this, surgery cannot change the
    query's latent and is refused."""
    use_batch_norm: Where = "none"
    """Networks that use batch norm."""
    use_layer_norm: Where = "both"
    """Networks that use layer norm."""
    background_activation: Literal["softplus", "exp"] = "softplus"
    """Function that makes the standard deviation of the protein background positive; exp is that
    of scvi-tools before 1.2."""
    input_scaling: Literal["mean", "none"] = "mean"
    """Input of the encoder. mean: log(1 + count / (1 + mean count of the cell)), with separate
    means for genes and proteins; none: log(1 + count), as in scvi-tools before 1.3.1."""
    empirical_protein_background_prior: bool | None = None
    """Initialise the prior of the protein background from two-component mixtures fitted to the
    protein counts of single cells, as scvi-tools does. null: true with more than 10 proteins."""
    adversarial: bool | None = None
    """Train an adversary that predicts the batch from the latent, and penalise the encoder if it
    succeeds; its weight is 1 − that of the KL terms. null: true if a batch lacks a protein."""
    train: TotalviTrainSettings = field(default_factory=TotalviTrainSettings)
    """Training of totalVI."""
    classifier: HeadTrainSettings = field(default_factory=HeadTrainSettings)
    """Training of the classifier; totalVI itself, and so the latent, stays fixed."""


@dataclass(frozen=True, config=CLOSED)
class SurgerySettings(VaeFitSettings):
    """scArches surgery (Lotfollahi et al. 2021): only the weights appended for new batches
    are trained, without weight decay."""

    max_epochs: Epochs = 100
    """Number of epochs."""
    surgery_dropout: bool = False
    """Apply dropout during surgery; false, as in scvi-tools, runs the networks in eval mode."""


@dataclass(frozen=True, config=CLOSED)
class TotalviSurgerySettings(SurgerySettings):
    """Surgery of totalVI: every per-batch table gets rows for the new batches; the protein loss is
    warmed up by step."""

    n_epochs_kl_warmup: Epochs | None = None
    """Epochs over which the weight of the KL terms and the protein loss rises from 0 to 1; null:
    warm-up by steps (`n_steps_kl_warmup`)."""
    n_steps_kl_warmup: Count | None = None
    """Optimiser steps over which that weight rises from 0 to 1; set, it replaces
    `n_epochs_kl_warmup`. If both are null: 0.75 × number of cells."""
    max_epochs: Epochs = 200
    """Number of epochs."""
    batch_size: Minibatch = 256
    """Cells per minibatch."""
    learning_rate: Rate = 4e-3
    """Learning rate of Adam."""
    as_scvi_tools: bool = False
    """Do not train the efficiency and dispersions of new batches, as scvi-tools; only for
    comparisons with scvi-tools."""


@dataclass(frozen=True, config=CLOSED)
class DenoiseSettings:
    """Denoised genes and proteins of totalVI, written beside each CITE-seq bundle."""

    n_samples: Count = 25
    """Samples from the posterior of each cell, over which denoised values are averaged."""
    interval: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Fraction of the posterior samples inside the central interval (`_lower`, `_upper`)."""
    rna: bool = True
    """Also denoise genes, which writes three cells × genes matrices (mean and interval); false:
    only proteins."""


@dataclass(frozen=True, config=CLOSED)
class MappingSettings:
    """Distribution of query batches over jobs; results do not depend on it."""

    batches_per_job: Count = 1
    """Query batches that one job maps one after the other (`per_batch`); 20 or more for hundreds
    of small batches on GPUs."""


@dataclass(frozen=True, config=CLOSED)
class TransferSettings:
    """Second opinion: weighted k-nearest-neighbour label transfer in the latent, as in the HLCA."""

    n_neighbors: Count = 50
    """Reference neighbours per query cell."""


@dataclass(frozen=True, config=CLOSED)
class CalibrationSettings:
    """Calibration of labels, learned from held-out reference cells and never from a query."""

    scheme: Literal["batches", "validation", "none"] = "batches"
    """Cells to calibrate on. batches: each reference batch is held out once and mapped, like a
    query, onto a model trained without it (parts of the batch, if there is only one). validation:
    the validation cells of the reference model, which needs no further training but is optimistic,
    because the model has seen their batches. none: no calibration, only the classifier's labels."""
    folds: Count | None = None
    """Number of groups of batches; for each group a model is trained without it. At most one group
    per batch. null: 4, or 2 from 20,000 reference cells on. A single batch is always split in 3."""
    n_draws: Count = 32
    """Samples from the posterior of each cell, over which label probabilities are averaged."""
    risk: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Largest fraction of confident cells whose label may be wrong."""
    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Fraction of the cells that are not confident whose prediction set must contain the true
    label."""
    false_novel: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Largest fraction of held-out cells with a known label that may be called novel."""
    min_cells: Count = 20
    """Fewest labelled held-out cells needed for calibration; fewer is an error."""
    min_cells_per_label: Count = 20
    """Fewest held-out cells of a label for reporting how many of them would be called novel if the
    reference lacked the label."""


@dataclass(frozen=True, config=CLOSED)
class UmapSettings:
    """UMAP, fitted on reference cells only; query cells are placed into it, so it never changes."""

    max_cells: Count = 200_000
    """Most reference cells on which UMAP is fitted; the others are placed into the map."""
    n_neighbors: Annotated[int, Field(ge=2, le=10**9)] = 15
    """Neighbours per cell (UMAP's n_neighbors)."""
    min_dist: Annotated[float, Field(ge=0, le=10)] = 0.5
    """Smallest distance between points of the map (UMAP's min_dist)."""


@dataclass(frozen=True, config=CLOSED)
class BenchmarkSettings:
    """Second opinions on labels, and scib-metrics."""

    scope: Literal["none", "labels", "full"] = "full"
    """none: neither; labels: only second opinions on query cells; full: also scib-metrics."""
    split_above: Count = 50_000
    """Up to this many cells of the atlas, one job scores all embeddings of a seed; above, each
    embedding has its own job. Neighbours are exact if at most this many cells are scored, else
    approximate (NN-descent)."""
    n_neighbors: Annotated[int, Field(ge=3, le=10**9)] = 90
    """Neighbours per cell for scib-metrics; the most that kBET and LISI use."""
    max_cells: Annotated[int, Field(ge=100, le=10**9)] = 50_000
    """Most cells to score at once. Larger data are scored on `n_samples` samples of this size, in
    which each batch and label keeps its proportion."""
    n_samples: Annotated[int, Field(ge=2, le=10**9)] = 3
    """Samples to score if there are more than `max_cells` cells. Each score is the mean over
    samples, with its 95 % interval (`_low`, `_high`)."""


@dataclass(frozen=True, config=CLOSED)
class ExplorerSettings:
    """The atlas explorer (explorer.html)."""

    genes: tuple[str, ...] = ()
    """Genes by which cells can be coloured; empty: marker genes of the labels."""
    max_cells: Annotated[int, Field(ge=100, le=10**9)] = 500_000
    """Most cells to show; of more, a sample in which each batch and label keeps its proportion."""


@dataclass(frozen=True, config=CLOSED)
class CardSettings:
    """Entries of the model card that cannot be read from the data."""

    description: str = ""
    """Description of the reference, in a sentence or two."""
    license: str = "unknown"
    """Licence under which the model is shared, as an identifier of Hugging Face (cc-by-4.0)."""
    tissue: tuple[str, ...] = ()
    """Tissues that the reference covers."""
    n_samples: Count = 5
    """Posterior predictive samples over which coefficients of variation are averaged."""
    max_cells: Count = 50_000
    """Most cells used for the posterior predictive checks."""


@dataclass(frozen=True, config=CLOSED)
class SimulateSettings:
    """Simulated atlas: a tree of cell types, Zipf abundances, batch and chemistry shifts."""

    n_cells: Count = 6000
    """Number of cells, reference and query together."""
    n_genes: Annotated[int, Field(ge=50, le=10**9)] = 1500
    """Number of genes."""
    n_reference_batches: Count = 6
    """Number of reference batches."""
    n_query_batches: Count = 2
    """Number of query batches; they are of another chemistry, which shifts them further."""
    n_lineages: Annotated[int, Field(ge=2, le=10**9)] = 5
    """Number of lineages in the tree of cell types."""
    n_types_per_lineage: Annotated[int, Field(ge=1, le=10**9)] = 3
    """Cell types per lineage."""
    depth: Annotated[float, Field(gt=0, le=1e6)] = 450.0
    """Median library size of reference cells: counts summed over all genes."""
    proteins: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Number of proteins (CITE-seq), with known background and foreground; 0: none."""
    missing_proteins: Annotated[int, Field(ge=0, le=10**9)] = 3
    """Number of proteins not measured in the first reference batch and the first query batch."""
    seed: Seed = 0
    """Seed of the simulation."""


@dataclass(frozen=True, config=CLOSED)
class ReferenceSettings:
    """A trained reference to map onto, instead of reference rows in the sheet."""

    bundle: str | None = None
    """Folder of a bundle, from another run or imported; null: no bundle is taken over."""
    scvi_tools: str | None = None
    """Model to import: a folder or model.pt saved by scvi-tools, or the URL of a model.pt; null:
    nothing is imported."""
    adata: str | None = None
    """Cells of the scvi-tools reference, with counts or minified (.h5ad or its URL); null: the
    adata.h5ad beside the model."""

    @property
    def given(self) -> bool:
        """Whether a trained reference is given."""
        return bool(self.bundle or self.scvi_tools)


@dataclass(frozen=True, config=CLOSED)
class FinalSettings:
    """The mapping that is published as the result."""

    variant: Variant | None = None
    """Classifier variant; null: fixed if it is among `variants`, else the first of `variants`."""
    strategy: Strategy | None = None
    """Strategy; null: the first of `strategies`."""
    seed: Seed | None = None
    """Seed; null: the first of `seeds`."""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class DataConfig:
    """Keys that decide which checks are made, which labels count, and what the model is given."""

    modality: Literal["rna", "citeseq"] = "rna"
    """What was measured. rna: RNA, modelled by scVI and scANVI; citeseq: RNA and proteins, modelled
    by totalVI."""
    counts: Literal["integer", "corrected_float"] = "integer"
    """integer: counts must be whole numbers; corrected_float also admits fractions, as SoupX and
    CellBender leave them."""
    labels: Literal["given", "none"] = "given"
    """given: the reference has labels; none: there are no labels, and stages that need labels are
    left out."""
    unlabeled_category: str = "Unknown"
    """Name for cells without a label."""
    unlabeled_values: list[str] = field(default_factory=list)
    """Further values of the label column that stand for no label. `Unknown` must be
    listed, too, if it occurs in the column."""
    keep_labels: list[str] = field(default_factory=list)
    """Labels to keep although they read like no label (doublet, low quality, unassigned)."""
    categorical_covariates: ObsColumns = field(default_factory=list)
    """Categorical columns of obs on which the model conditions besides the batch."""
    continuous_covariates: ObsColumns = field(default_factory=list)
    """Numeric columns of obs on which the model conditions."""
    label_levels: ObsColumns = field(default_factory=list)
    """Further label columns of the reference, coarser or finer. Each is transferred by kNN; at
    coarser levels the classifier's probabilities are summed, too."""
    data: DataSettings = field(default_factory=DataSettings)
    """Checks of the data and choice of genes."""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Config(DataConfig):
    """The config of one atlas."""

    atlas: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the atlas, and of its folder under results/."""
    datasets: str
    """Sheet of data sets (tab-separated file). A relative path starts from the working directory,
    else from the repository."""
    data_dir: str | None = None
    """Folder from which relative paths in the sheet start; null: the folder of the sheet."""
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    """A trained reference to map onto."""
    device: Device = "auto"
    """Where to compute. auto: CUDA if usable, else CPU (in a cluster job that asked for a GPU: CUDA
    or an error); cpu; cuda: CUDA or an error; any: CUDA if usable, else CPU."""
    variants: list[Variant] = field(default_factory=lambda: ["prefix", "fixed", "linear"])
    """Forms of scANVI's classifier to train and compare. fixed: as in scvi-tools since 1.1; prefix:
    as before, with the cross-entropy of probabilities instead of logits; linear: no hidden
    layers."""
    strategies: list[Strategy] = field(default_factory=lambda: ["per_batch", "joint"])
    """How query batches are mapped. per_batch: surgery for each batch by itself; joint: one surgery
    for all; frozen: no training; de_novo: a new model, trained jointly on reference and query."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """Seeds; training and mapping are repeated with each."""
    final: FinalSettings = field(default_factory=FinalSettings)
    """Variant, strategy and seed of the mapping that is published as the result."""
    scvi: ScviSettings = field(default_factory=ScviSettings)
    """Architecture and training of scVI."""
    totalvi: TotalviSettings = field(default_factory=TotalviSettings)
    """Architecture and training of totalVI (modality: citeseq)."""
    scanvi: ScanviSettings = field(default_factory=ScanviSettings)
    """Training of scANVI, all variants."""
    scanvi_prefix: dict = field(default_factory=dict)
    """Keys of `scanvi` to override for the prefix variant."""
    scanvi_fixed: dict = field(default_factory=dict)
    """Keys of `scanvi` to override for the fixed variant."""
    scanvi_linear: dict = field(default_factory=dict)
    """Keys of `scanvi` to override for the linear variant."""
    surgery: SurgerySettings = field(default_factory=SurgerySettings)
    """Surgery on scVI and scANVI."""
    totalvi_surgery: TotalviSurgerySettings = field(default_factory=TotalviSurgerySettings)
    """Surgery on totalVI (modality: citeseq)."""
    mapping: MappingSettings = field(default_factory=MappingSettings)
    """Distribution of query batches over jobs."""
    denoise: DenoiseSettings = field(default_factory=DenoiseSettings)
    """Denoised genes and proteins (modality: citeseq)."""
    checkpoint_minutes: Annotated[float, Field(gt=0, le=1e5)] = 5.0
    """Minutes between checkpoints during training and surgery."""
    label_tree: str | None = None
    """Tree of labels, from coarse to fine: a sheet with columns child and parent, or with a row per
    label (its name, then columns with `level` in their names, topmost first). Probabilities are
    summed at each level, ambiguous cells get the common ancestor of their possible labels, and
    reference cells with a coarse label are trained on at that level. null: `label_levels`, else the
    Cell Ontology where labels are its terms; none: no tree, labels exclude each other."""
    transfer: TransferSettings = field(default_factory=TransferSettings)
    """Label transfer by kNN."""
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    """Calibration of label probabilities, novelty and prediction sets."""
    umap: UmapSettings = field(default_factory=UmapSettings)
    """UMAP of reference and query."""
    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    """Second opinions and scib-metrics."""
    card: CardSettings = field(default_factory=CardSettings)
    """Entries of model cards."""
    explorer: ExplorerSettings = field(default_factory=ExplorerSettings)
    """The atlas explorer (explorer.html)."""
    simulate: SimulateSettings = field(default_factory=SimulateSettings)
    """The simulated atlas, used where the sheet names `builtin:simulated`."""
