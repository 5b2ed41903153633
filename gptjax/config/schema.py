"""The definition of a run: frozen dataclasses, written as JSON.

A file in `configs/` returns a `Config`; the command line overrides single fields. Field names are
OpenAI's and Hugging Face's where they exist; every count carries its unit. Nothing here imports
jax, so `--help` is instant.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Literal

from gptjax.config.examples import ClassifyConfig, DataConfig, InstructConfig
from gptjax.config.training import TrainConfig

PRETRAIN, CLASSIFY, INSTRUCT = "pretrain", "classify", "instruct"
TASKS_WITH_SPECIAL_TOKENS = frozenset({CLASSIFY})
"""Tasks that train GPT-1's start, delimiter and extract, ids after the vocabulary; only their runs
are exported with them."""
VOCAB_MULTIPLE = 128  # rows of the embedding table are padded to whole tensor-core tiles


@dataclass(frozen=True)
class ModelConfig:
    """The network: its shape and its switches. GPT-1 and GPT-2 differ only in these fields."""

    n_layer: int = 12
    """Transformer blocks (N)."""
    n_head: int = 12
    """Attention heads in a block (H); must divide n_embd."""
    n_embd: int = 768
    """Width of the residual stream (D)."""
    n_ctx: int = 1024
    """Longest context that the position table holds, in tokens."""
    n_vocab: int | None = None
    """Vocabulary size (V), in tokens; None takes it from the prepared data's tokenizer."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each sub-layer (GPT-2) or after each residual sum (GPT-1)."""
    final_norm: bool = True
    """Layer norm after the last block (GPT-2: yes, GPT-1: no)."""
    scale_residual_init: bool = True
    """Divide the initial scale of residual projections by sqrt(2 N) (GPT-2: yes, GPT-1: no)."""
    qkv_bias: bool = True
    """Bias of the query, key and value projection."""
    bias: bool = True
    """Bias of every other projection and of the layer norms."""
    tied_head: bool = True
    """Compute logits with the token embedding instead of a second matrix."""
    activation: Literal["gelu_tanh", "gelu_erf"] = "gelu_tanh"
    """GELU of the MLP: OpenAI's tanh form (Hugging Face's gelu_new), or the exact one by the error
    function (torch's nn.GELU(), nanoGPT). A model trained with one is slightly wrong in the
    other."""
    embd_pdrop: float = 0.0
    """Dropout probability after the sum of token and position embedding."""
    attn_pdrop: float = 0.0
    """Dropout probability of attention weights."""
    resid_pdrop: float = 0.0
    """Dropout probability of each sub-layer's output."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of activations and matrix products; parameters, norms, softmax and loss stay float32.
    float16 is for GPUs without bfloat16 and brings dynamic loss scaling with it."""
    float32_matmul: Literal["highest", "tf32"] = "highest"
    """How a GPU multiplies float32 matrices: exactly, or several times faster in TF32."""
    attention: Literal["auto", "xla", "blockwise", "cudnn", "pallas"] = "auto"
    """Attention: xla forms all T x T weights; blockwise never holds more than one tile of them;
    cudnn and pallas are flash attention on GPUs, of which pallas can drop weights and keep
    documents apart; auto times what works here, takes the fastest, and keeps it with the run."""
    n_special: int = 0
    """Ids after the vocabulary, for GPT-1's start, delimiter and extract; a classification that
    reads the extract token sets it."""
    n_classes: int = 0
    """Outputs of the linear head that classifies; the data of a classification set it, and 0 has no
    head."""
    clf_pdrop: float = 0.0
    """Dropout probability of the state that the classification head reads."""
    lora_rank: int = 0
    """Rank (R) of the low-rank adapters beside frozen matrices (LoRA); 0 has none. A fine-tuning
    uses them if it starts from a model."""
    lora_alpha: float = 16.0
    """Adapters are multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = 0.0
    """Dropout probability of the inputs of the adapters."""
    lora_targets: tuple[str, ...] = ("c_attn",)
    """Matrices of the blocks with adapters, by the end of their name or a pattern: c_attn, c_fc,
    attn/c_proj, mlp/*."""
    remat: Literal["none", "dots", "block", "full"] = "none"
    """Rematerialisation: the backward pass recomputes nothing (none); norms, GELUs and dropout
    (dots); the block except its attention (block); or the whole block (full), to save memory."""
    unroll: int = 1
    """Layers per iteration of the loop over the stack: 1 compiles fastest, n_layer runs fastest."""

    @property
    def head_dim(self) -> int:
        """Width of one head (K)."""
        return self.n_embd // self.n_head

    @property
    def padded_vocab(self) -> int:
        """Rows of the token embedding: all ids, rounded up to a multiple of 128."""
        if self.n_vocab is None:
            raise ValueError("n_vocab is not known yet: it comes from the prepared data")
        return math.ceil((self.n_vocab + self.n_special) / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclass(frozen=True)
class OptimConfig:
    """An optimizer with global-norm clipping, decoupled masked decay and a warm-up schedule."""

    name: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    """Update rule; muon is for the matrices of the blocks, with AdamW for everything else."""

    peak_lr: float = 6e-4
    """Learning rate at the end of the warm-up."""
    final_lr: float = 6e-5
    """Learning rate at the end of the schedule."""
    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    """Shape after the warm-up: cosine, straight line, or flat with a linear cooldown (wsd)."""
    warmup_steps: int = 700
    """Linear warm-up, in steps."""
    warmup_fraction: float | None = None
    """Warm-up as a share of all steps, in place of warmup_steps, for runs counted in epochs."""
    decay_steps: int | None = None
    """Step at which the schedule ends, warm-up included; None means train.max_steps. After it the
    rate stays at final_lr."""
    rewarm_steps: tuple[int, ...] = ()
    """Steps after which the schedule starts again, with its warm-up; each schedule ends where the
    next begins. For runs that continue after their end."""
    cooldown_fraction: float = 0.2
    """Share of the schedule in which the rate falls at the end (wsd only; 0 to 1)."""
    weight_decay: float = 0.1
    """Decoupled decay per unit of learning rate; biases and norms are never decayed."""
    beta1: float = 0.9
    """Decay of Adam's first moment, per step."""
    beta2: float = 0.95
    """Decay of Adam's second moment, per step."""
    eps: float = 1e-8
    """Adam's epsilon, added to the root of the second moment."""
    muon_momentum: float = 0.95
    """Decay of Muon's momentum, per step (Jordan et al. 2024); a lower one suits short runs."""
    clip_norm: float | None = 1.0
    """Gradients are clipped to this global norm; None does not clip."""
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the optimizer's moments are stored between steps."""
    ema_decay: float | None = None
    """Decay per step of a running average of the parameters. Validation and samples use the
    average; None keeps none."""
    trainable: tuple[str, ...] = ()
    """Parameters to train, by patterns of their names, such as h/* ln_f/* clf/*; all others keep
    their values. A fine-tuning reads it if it starts from a model; nothing means all."""
    trainable_layers: int | None = None
    """Number of last blocks whose parameters in trainable are trained; None means all blocks."""


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh; the product of its three axes is the number of devices."""

    data: int | None = None
    """Groups of devices that each hold a whole model and compute their own rows; None means as many
    as the other two axes leave."""
    fsdp: int = 1
    """Devices among which parameters, gradients, optimizer state and rows are divided."""
    tensor: int = 1
    """Devices among which heads, MLP width and vocabulary are divided; they share their rows."""


@dataclass(frozen=True)
class SampleConfig:
    """How text is drawn: the samples while training, and the settings of every request."""

    prompt: str = ""
    """Text to continue; empty starts a new document."""
    max_new_tokens: int = 96
    """Length of a sample, in tokens."""
    temperature: float = 0.8
    """Divisor of the logits; 0 always takes the most likely token."""
    top_k: int | None = 50
    """Number of most likely tokens to choose from; None keeps the whole vocabulary."""
    top_p: float = 1.0
    """Choose from the fewest most likely tokens with this total probability (nucleus sampling); 1
    keeps the whole vocabulary."""
    min_p: float = 0.0
    """Choose from tokens of at least this share of the highest probability; 0 keeps the whole
    vocabulary."""
    repetition_penalty: float = 1.0
    """Divisor of the positive logits of tokens in the text so far, and factor of their negative
    ones; above 1 makes repetition less likely."""
    stop: tuple[str, ...] = ()
    """Texts before which a sample ends."""


@dataclass(frozen=True)
class Config:
    """A whole run, together with the step, the parameters and the optimizer state."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    instruct: InstructConfig = field(default_factory=InstructConfig)
    task: str = PRETRAIN
    """Kind of training, a row of TASKS in training/tasks.py: pretrain predicts every next token,
    classify a label, instruct the responses to instructions."""

    @property
    def context(self) -> int:
        """Tokens in a training window (T)."""
        return self.model.n_ctx if self.train.context is None else self.train.context

    @property
    def batch_rows(self) -> int:
        """Training windows, or examples of a fine-tuning, per step."""
        return self.train.batch_rows or self.train.batch_tokens // self.context


def to_json(config: Config) -> str:
    """Write a config as indented JSON: the task, and section by section."""
    values = dataclasses.asdict(config)
    return json.dumps({f.name: values[f.name] for f in dataclasses.fields(Config)}, indent=2) + "\n"
