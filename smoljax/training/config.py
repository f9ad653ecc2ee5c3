"""What a training run is made of: one tree of frozen dataclasses. A config file builds a `TrainConfig`."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from smoljax.config import AttentionKind, ComputeDtype, Remat, SmolVLMConfig
from smoljax.data.config import DataConfig
from smoljax.errors import UsageError
from smoljax.nn.adapt import Tie
from smoljax.processing.prompt import TileTokens
from smoljax.sharing import SharingConfig

OptimizerName = Literal["adamw", "muon"]
Decay = Literal["cosine", "wsd", "linear", "constant"]
ContrastiveKind = Literal["sigmoid", "infonce"]
RulesName = Literal["dp", "fsdp", "fsdp_tp"]


@dataclass(frozen=True)
class ModelConfig:
    """What is trained: a fresh architecture, or a checkpoint to go on from.

    Attributes:
      architecture: of a fresh model; None with `start`.
      processor: folder with the tokenizer and picture settings of a fresh model.
      start: MODEL of the command line whose weights, architecture and processor are taken.
      fresh_rows: draw those rows of its word table anew that it never learned: whose cosine with another row is above
        this (0.9). For data with words that the model has not met (`smoljax.training.fresh_rows`). None: none.
      sharing: how image tokens and words share the embedding space, in place of the architecture's or the checkpoint's
        own; what that needs and the checkpoint lacks is made fresh (`smoljax.nn.adapt`). None: as it is.
      tie, scale_factor: see `smoljax.nn.adapt.adapt`; belong to start.
      tile_tokens: what says in the prompt where a tile lies (`smoljax.processing.prompt.picture_text`); None: as it is.
      dtype: of activations; parameters and optimizer state are float32 whatever this says.
      scan_layers: one compiled layer instead of `num_layers`; compiles faster.
      remat: what the backward pass recomputes (`smoljax.config.ComputeConfig`).
      attention: which implementation (`smoljax.config.ComputeConfig`).
    """

    architecture: SmolVLMConfig | None = None
    processor: str | None = None
    start: str | None = None
    fresh_rows: float | None = None
    sharing: SharingConfig | None = None
    tie: Tie | None = None
    scale_factor: int | None = None
    tile_tokens: TileTokens | None = None
    dtype: ComputeDtype = "float32"
    scan_layers: bool = False
    remat: Remat = "none"
    attention: AttentionKind = "auto"

    def __post_init__(self) -> None:
        """Raises UsageError unless exactly one of `architecture` (with `processor`) and `start` is given."""
        if (self.architecture is None) == (self.start is None):
            raise UsageError("model: give either architecture (with processor) or start")
        if self.architecture is not None and self.processor is None:
            raise UsageError("model: a fresh architecture needs processor, a folder with tokenizer.json")
        for name, value, kind in (("tie", self.tie, Tie), ("tile_tokens", self.tile_tokens, TileTokens)):
            if value is not None:
                _one_of(f"model.{name}", value, kind)
        if self.start is None and (self.tie is not None or self.scale_factor is not None):
            raise UsageError("model: tie and scale_factor belong to start; a fresh architecture has its own")
        if self.fresh_rows is not None and (self.start is None or not 0 < self.fresh_rows < 1):
            raise UsageError(
                f"model.fresh_rows is {self.fresh_rows}; it must be a cosine between 0 and 1, and belongs to start"
            )


@dataclass(frozen=True)
class Group:
    """How the parameters whose path matches are trained; the first group that matches counts.

    Attributes:
      pattern: regular expression searched in the parameter's path (docs/architecture.md), e.g. "^vision/".
      lr: factor on the learning rate.
      frozen: no gradient step at all, and no optimizer state.
      optimizer: instead of the run's own.
      weight_decay: instead of the run's own.
    """

    pattern: str
    lr: float = 1.0
    frozen: bool = False
    optimizer: OptimizerName | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule.

    Attributes:
      name: "adamw", or "muon" for the matrices inside layers (the rest takes AdamW).
      lr: peak learning rate of AdamW.
      muon_lr: peak learning rate of Muon's matrices; its updates have a root mean square of about 0.2.
      beta1, beta2, eps, weight_decay: AdamW's; decay applies to matrices, not to norms and biases.
      clip: largest global gradient norm; 0 turns clipping off.
      warmup_steps: linear from 0.
      decay: "cosine" to `final_lr`, "linear", "wsd" (constant, then linear over the last
        `decay_fraction`), or "constant".
      final_lr: end of the schedule as a fraction of the peak.
      decay_fraction: share of all steps that WSD decays over.
      accumulate: micro-batches a step; the batch is split, the result is the whole batch's.
      ema: decay of the exponential moving average of parameters; 0 turns it off. Where it is on, it is
        what is evaluated and exported.
      groups: learning rates and freezing by path.
    """

    name: OptimizerName = "adamw"
    lr: float = 1e-3
    muon_lr: float = 5e-3
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup_steps: int = 100
    decay: Decay = "cosine"
    final_lr: float = 0.0
    decay_fraction: float = 0.2
    accumulate: int = 1
    ema: float = 0.0
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        """Raises UsageError for a value outside its range."""
        _one_of("optimizer.name", self.name, OptimizerName)
        _one_of("optimizer.decay", self.decay, Decay)
        _at_least(1, **{"optimizer.accumulate": self.accumulate})
        _at_least(0, **{"optimizer.warmup_steps": self.warmup_steps, "optimizer.clip": self.clip})
        if not 0 <= self.ema < 1:
            raise UsageError(f"optimizer.ema is {self.ema}; it must be in [0, 1)")


@dataclass(frozen=True)
class NextToken:
    """Completion loss: −log p of the tokens that `loss_mask` marks.

    Attributes:
      weight: factor in the sum of objectives.
      chunk: tokens whose scores exist at a time on a device.
      z_loss: weight of log²Z (Chowdhery et al. 2022), 0 for none.
      balance: a token counts n^−balance, n being the learned tokens of its conversation. 0: all tokens alike, so
        long answers outweigh short ones; 1: all conversations alike; 0.5 between ("square averaging", Chen et
        al. 2024, InternVL 2.5).
    """

    weight: float = 1.0
    chunk: int = 1024
    z_loss: float = 0.0
    balance: float = 0.0
    name = "next_token"

    def __post_init__(self) -> None:
        """Raises UsageError for a value outside its range."""
        _at_least(1, **{"next_token.chunk": self.chunk})


@dataclass(frozen=True)
class Contrastive:
    """Picture and caption vectors in the shared space, pulled together by pairs.

    Attributes:
      weight: factor in the sum of objectives.
      kind: "infonce" (softmax over the batch, both ways; Radford et al. 2021) or "sigmoid" (Zhai et al. 2023).
      scale: the initial factor on cosine similarities; learned.
      bias: the initial bias of the sigmoid loss; learned.
    """

    weight: float = 1.0
    kind: ContrastiveKind = "sigmoid"
    scale: float = 10.0
    bias: float = -10.0
    name = "contrastive"

    def __post_init__(self) -> None:
        """Raises UsageError for an unknown kind."""
        _one_of("contrastive.kind", self.kind, ContrastiveKind)


@dataclass(frozen=True)
class Dense:
    """What each patch shows: a linear classifier a label on the patch encoder's output.

    Attributes:
      labels: (name in the batch's `patches`, number of classes); class 0 is "nothing here".
      weight: factor in the sum of objectives.
      object_weight: weight of patches that show something, against 1 for the others.
      label_weights: factor on each label's loss, in the order of `labels`; () is 1 for each.
    """

    labels: tuple[tuple[str, int], ...]
    weight: float = 1.0
    object_weight: float = 5.0
    label_weights: tuple[float, ...] = ()
    name = "dense"

    def __post_init__(self) -> None:
        """Raises UsageError where the weights do not go with the labels."""
        if self.label_weights and len(self.label_weights) != len(self.labels):
            raise UsageError(
                f"dense: {len(self.label_weights)} label_weights for {len(self.labels)} labels; give one each"
            )


@dataclass(frozen=True)
class Distill:
    """A larger model of the same vocabulary teaches (Hinton et al. 2015).

    Attributes:
      teacher: MODEL of the command line; same tokenizer, same picture settings.
      weight: factor in the sum of objectives.
      temperature: of both distributions; the KL divergence is multiplied by its square.
      hidden: weight of the mean squared error between the student's last hidden state, projected by a learned matrix,
        and the teacher's, at learned tokens; 0 for none.
      chunk: tokens whose scores exist at a time.
    """

    teacher: str
    weight: float = 1.0
    temperature: float = 2.0
    hidden: float = 0.0
    chunk: int = 1024
    name = "distill"

    def __post_init__(self) -> None:
        """Raises UsageError for a value outside its range."""
        _at_least(1, **{"distill.chunk": self.chunk})
        if not self.temperature > 0:
            raise UsageError(f"distill.temperature is {self.temperature}; it must be above 0")


@dataclass(frozen=True)
class BagOfWords:
    """The words said about a picture are to be read off its image tokens, by products with the word rows.

    Attributes:
      weight: factor in the sum of objectives.
      balance: as `NextToken.balance`.
      chunk: tokens whose scores exist at a time.
    """

    weight: float = 0.1
    balance: float = 0.0
    chunk: int = 1024
    name = "bag_of_words"

    def __post_init__(self) -> None:
        """Raises UsageError for a value outside its range."""
        _at_least(1, **{"bag_of_words.chunk": self.chunk})


@dataclass(frozen=True)
class GapPenalty:
    """Image tokens and words are to have one centroid as the decoder's input.

    Attributes:
      weight: factor on the squared distance of the centroids over the words' mean squared length.
    """

    weight: float = 1.0
    name = "gap"


@dataclass(frozen=True)
class SoftTie:
    """Word table and output head are to be near each other; for untied models.

    Attributes:
      weight: factor on ‖E − W‖² over the mean of ‖E‖² and ‖W‖².
    """

    weight: float = 1.0
    name = "soft_tie"


@dataclass(frozen=True)
class Commitment:
    """Projections are to be near the rows that replace them (van den Oord et al. 2017); for "nearest_word".

    Attributes:
      weight: factor on the mean squared distance.
    """

    weight: float = 0.25
    name = "commitment"


Objective = NextToken | Contrastive | Dense | Distill | BagOfWords | GapPenalty | SoftTie | Commitment


@dataclass(frozen=True)
class MeshConfig:
    """How devices share the work; the same code runs on one CPU, on eight fake devices and on a slice.

    Attributes:
      data: ways the batch is split with parameters repeated; -1 takes all devices that are left.
      fsdp: ways batch and parameters are both split.
      sequence: ways the tokens of a row are split, for rows too long for one device.
      tensor: ways heads, MLPs and the vocabulary are split.
      rules: what the axes may split (`smoljax.training.sharding.PRESETS`): "dp", the batch alone; "fsdp", parameters
        and optimizer state too; "fsdp_tp", heads, MLPs and vocabulary too. An axis of 1 splits nothing.
      host_devices: CPU only: how many devices to make of the CPU (two are faster than one on two cores).
    """

    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    rules: RulesName = "fsdp_tp"
    host_devices: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for unknown rules."""
        _one_of("mesh.rules", self.rules, RulesName)


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved, and what is kept.

    Attributes:
      every: steps between checkpoints.
      keep_last: how many of the newest are kept.
      keep_best: how many of the best (by validation loss) are kept besides; 0 without validation.
    """

    every: int = 500
    keep_last: int = 2
    keep_best: int = 1

    def __post_init__(self) -> None:
        """Raises UsageError for a value outside its range."""
        _at_least(1, **{"checkpoint.every": self.every, "checkpoint.keep_last": self.keep_last})
        _at_least(0, **{"checkpoint.keep_best": self.keep_best})


@dataclass(frozen=True)
class GuardConfig:
    """When a run stops by itself. A NaN or infinite loss or gradient always stops it.

    Attributes:
      spike: stop where the loss exceeds this many times its running mean …
      patience: … this many steps in a row; 0 turns the check off.
    """

    spike: float = 3.0
    patience: int = 20


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
      name: of the run; the default folder is runs/NAME.
      model: what is trained.
      data: what it sees.
      objectives: what it learns; their weighted sum is the loss.
      steps: optimizer steps in all.
      optimizer: how.
      validation: data for the validation loss, None for none.
      validate_every: steps between validations.
      validation_batches: batches each validation sees, always the same ones.
      mesh, checkpoint, guard: see there.
      noise: NEFTune (Jain et al. 2023) noise on the merged embeddings, its alpha; 0 for none.
      log_every: steps between lines of metrics.jsonl.
      seed: of parameters, data order and noise.
    """

    name: str
    model: ModelConfig
    data: DataConfig
    objectives: tuple[Objective, ...]
    steps: int
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: DataConfig | None = None
    validate_every: int = 500
    validation_batches: int = 16
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    noise: float = 0.0
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a run that cannot be."""
        if not self.objectives:
            raise UsageError("objectives: a run needs at least one")
        names = [objective.name for objective in self.objectives]
        if len(set(names)) < len(names):
            raise UsageError(f"objectives: {', '.join(names)}: each kind may stand once")
        _at_least(
            1,
            steps=self.steps,
            validate_every=self.validate_every,
            validation_batches=self.validation_batches,
            log_every=self.log_every,
        )
        _at_least(0, noise=self.noise)
        if self.data.batch_size % self.optimizer.accumulate:
            raise UsageError(
                f"data.batch_size {self.data.batch_size} is no multiple of optimizer.accumulate "
                f"{self.optimizer.accumulate}"
            )


def _at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise UsageError(f"{name} is {value}; it must be at least {least}")


def _one_of(name: str, value: str, kind: object) -> None:
    if value not in get_args(kind):
        raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(get_args(kind))}")
