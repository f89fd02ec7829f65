"""What a config may hold: the legal keys, their types, ranges and defaults."""

import dataclasses

from reft_jax.config.records import setting
from reft_jax.rewards import matchers


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for contexts longer than those of pretraining; names are transformers'."""

    kind: str = setting(one_of=("none", "linear", "llama3", "yarn"), default="none")
    factor: float = setting(1, default=1.0)
    original_max_positions: int = setting(1, default=8192)  # llama3 and yarn
    low_freq_factor: float = setting(above=0, default=1.0)  # llama3
    high_freq_factor: float = setting(above=0, default=4.0)
    beta_fast: float = setting(above=0, default=32.0)  # yarn
    beta_slow: float = setting(above=0, default=1.0)
    attention_factor: float = setting(0, default=0.0)  # yarn; cos and sin are multiplied by it; 0 = 0.1 ln(factor) + 1
    truncate: bool = setting(default=True)  # yarn; whole dimensions as the ramp's ends


@dataclasses.dataclass(frozen=True)
class Arch:
    """A decoder. What has no default is a Llama's; every other key says how a family differs from it. Sizes in units.

    vocab_size 0 = the tokenizer's. `family` says how it is written as a Hugging Face directory.
    """

    vocab_size: int = setting(0)
    dim: int = setting(1)
    num_layers: int = setting(1)
    num_heads: int = setting(1)
    num_kv_heads: int = setting(1)
    head_dim: int = setting(1)
    ffn_dim: int = setting(1)
    rope_theta: float = setting(above=0)
    norm_eps: float = setting(above=0)
    tie_embeddings: bool = setting()
    init_std: float = setting(above=0)
    family: str = setting(
        one_of=("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "opt", "codegen"),
        default="llama",
    )
    max_positions: int = setting(1, default=4096)  # rows of learned positions; else what the model was made for
    positions: str = setting(one_of=("rotary", "learned"), default="rotary")
    position_offset: int = setting(0, default=0)  # learned: position p is row p + offset of as many rows more
    rotary_dim: int = setting(0, default=0)  # the first so many of head_dim are rotated; 0 = all
    rope_interleaved: bool = setting(default=False)  # pairs (0, 1), (2, 3), ...; else (0, H/2), (1, H/2 + 1), ...
    rope_scaling: RopeScaling = setting(default=RopeScaling())
    local_rope_theta: float = setting(0, default=0.0)  # of layers with a window, unscaled; 0 = as the others
    windows: tuple[int, ...] = setting(0, default=())  # per layer, how many last tokens are seen (0 = all); () = all
    norm: str = setting(one_of=("rms", "rms_plus_one", "layer"), default="rms")  # x scale; x (1 + scale); mean too
    post_norms: bool = setting(default=False)  # norms after attention and feed-forward as well as before
    qk_norm: bool = setting(default=False)  # norms over each head's query and key
    parallel: bool = setting(default=False)  # attention and feed-forward read the same norm and are added together
    activation: str = setting(one_of=("silu", "gelu", "gelu_tanh", "relu"), default="silu")
    gated: bool = setting(default=True)  # down(act(gate x) * up x); else down(act(up x))
    qkv_bias: bool = setting(default=False)
    out_bias: bool = setting(default=False)
    mlp_bias: bool = setting(default=False)
    unembed_bias: bool = setting(default=False)
    attention_scale: float = setting(0, default=0.0)  # 0 = 1 / sqrt(head_dim)
    scale_by_layer: bool = setting(default=False)  # attention logits of layer i are divided by i + 1
    attention_softcap: float = setting(0, default=0.0)  # logits become cap * tanh(logits / cap); 0 = not
    logit_softcap: float = setting(0, default=0.0)
    embed_scale: float = setting(above=0, default=1.0)


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685): W + alpha / rank * A B on every matrix whose name `targets` matches."""

    rank: int = setting(1)
    alpha: float = setting(above=0)
    targets: str = setting()  # a regular expression over attention.q .k .v .o, mlp.gate .up .down


@dataclasses.dataclass(frozen=True)
class Model:
    """`directory`: a Hugging Face directory or the name of a shipped model, whose config.json and tokenizer are used; else `arch`."""

    name: str = setting()
    directory: str = setting()
    arch: Arch | None = setting()
    param_dtype: str = setting(one_of=("float32", "bfloat16"))
    compute_dtype: str = setting(one_of=("float32", "bfloat16"))
    remat: str = setting(one_of=("none", "block", "dots"))
    logits_chunk: int = setting(1)  # positions whose [B, chunk, V] float32 logits exist at a time
    vocab_multiple: int = setting(1, default=1)  # rows of the embedding are padded to it, for a mesh axis to divide
    # `reft_jax/models/attention.py` says which when
    attention: str = setting(one_of=("auto", "xla", "kernel"), default="auto")
    lora: Lora | None = setting(default=None)  # train low-rank adapters instead of the whole model
    base: str = setting(one_of=("full", "int8", "int4", "nf4"), default="full")  # the frozen weights under adapters


@dataclasses.dataclass(frozen=True)
class Data:
    """The data set, the form of its prompts and targets, and its limits (lengths in tokens, sizes in records)."""

    name: str = setting(one_of=("arithmetic", "gsm8k", "svamp", "mathqa", "mathqa-numeric", "stories"))
    cot: str = setting(one_of=("program", "nl"))
    source: str = setting(one_of=("generated", "files", "tfds"))  # tfds: TensorFlow Datasets, where no file is named
    train_file: str = setting()
    test_file: str = setting()
    seed: int = setting(0)  # of the generated problems, or of the dev split
    num_train: int = setting(0)  # generated: how many; files: at most so many, 0 = all
    num_test: int = setting(0)
    dev_size: int = setting(0)
    annotations: str = setting(one_of=("diverse", "canonical", "worked", "corpus"))
    docstring: bool = setting()
    append_prefix: str = setting(one_of=("everywhere", "reft", "nowhere"))
    calculator_marks: str = setting(one_of=("strip", "keep"))
    matcher: str = setting(one_of=tuple(matchers.MATCHERS))  # `reft_jax/rewards/matchers`
    tokenizer: str = setting(one_of=("word", "bpe"))
    vocab_size: int = setting(300)
    max_prompt: int = setting(1)
    max_response: int = setting(1)
    prompt_buckets: tuple[int, ...] = setting(1)
    response_buckets: tuple[int, ...] = setting(1)
    # several sequences share a row in training and scoring: `reft_jax/data/packing.py`
    pack: bool = setting(default=True)
    # The share of the test questions that may stand in the training data, compared by their words. Up to 1 % is noted and run: it
    # moves an accuracy by at most a point, half of a 95 % interval at 1,000 questions. GSM8K and SVAMP share none.
    max_overlap: float = setting(0, 1, default=0.01)
    tfds_dir: str = setting(default="")  # where TFDS keeps what it built; "" = its own default
    manual_dir: str = setting(default="")  # a folder with the original files, so that TFDS downloads nothing
    questions_file: str = setting(default="")  # stories: a training file whose questions are read as text too


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh axes (one may be -1 = what is left), and which mesh axes each logical axis is laid over."""

    data: int = setting(-1)
    fsdp: int = setting(-1)
    tensor: int = setting(-1)
    rules: tuple[tuple[str, tuple[str, ...]], ...] = setting()
    # where parameters lie while sampling: `reft_jax/sharding.py`
    decode: str = setting(one_of=("replicated", "tensor", "as_trained"), default="replicated")
    moments: str = setting(one_of=("device", "host"), default="device")  # the memory of AdamW's moments between updates


@dataclasses.dataclass(frozen=True)
class Rewards:
    """How model-written programs are run, and how many of the gold answers may fail to grade correct (a fraction)."""

    timeout_s: float = setting(above=0)
    memory_mb: int = setting(64)
    workers: int = setting(0)  # 0 = one per core
    max_gold_failures: float = setting(0, 1)
    max_verifier_failures: float = setting(0, 1, default=0.1)  # share of a batch that may fail for no fault of its own
    sandbox: str = setting(one_of=("auto", "require"), default="auto")  # require: all layers of rewards/sandbox.py

    @property
    def limits(self) -> dict:
        """The arguments of `run_programs`."""
        return dict(timeout_s=self.timeout_s, memory_mb=self.memory_mb, workers=self.workers)


@dataclasses.dataclass(frozen=True)
class Logging:
    """How a run can be watched, beside each stage's metrics.jsonl, which is always written. Nothing here changes what is computed."""

    tensorboard: bool = setting(default=True)  # event files in the stages' folders
    wandb: str = setting(one_of=("off", "offline", "online"), default="off")
    wandb_project: str = setting(default="reft_jax")
    profile_steps: tuple[int, ...] = setting(1, default=())  # first and last step that every training stage traces


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW with global-norm clipping (0 = none). The rate rises linearly over the fraction `warmup` of the run, holds until the
    fraction `hold`, then falls linearly to `final` times lr at the end. The run is `schedule_epochs` long (0 = the stage's)."""

    lr: float = setting(above=0)
    warmup: float = setting(0, 1)
    hold: float = setting(0, 1)
    final: float = setting(0)
    schedule_epochs: float = setting(0)
    b1: float = setting(0, 1)
    b2: float = setting(0, 1)
    eps: float = setting(above=0)
    weight_decay: float = setting(0)
    max_grad_norm: float = setting(0)
    mu_dtype: str = setting(one_of=("", "float32", "bfloat16"), default="")  # of the first moment; "" = the parameters'


@dataclasses.dataclass(frozen=True)
class SFT:
    """Supervised fine-tuning on (question, CoT). `continue_run`: `init_from` is a stage whose optimizer state and data order go on."""

    kind: str = setting(one_of=("sft",))
    init_from: str = setting()
    continue_run: bool = setting()
    epochs: float = setting(above=0)
    batch_size: int = setting(1)
    accumulate: int = setting(1)  # parts that a batch is split into
    dropout: float = setting(0, 0.9)
    reduce: str = setting(one_of=("token", "sequence"))
    optim: Optim = setting()
    eval_every: float = setting(0)  # epochs; 0 = only at the end
    eval_batch_size: int = setting(1)  # responses that decode together in a check
    select: str = setting(one_of=("best", "last"))
    select_on: str = setting(one_of=("dev", "test"))
    log_every: int = setting(1)
    save_every: int = setting(1)


OF_GROUPS = ("grpo", "dr_grpo", "rloo")  # advantages that compare the responses to one question


CRITIC_FREE = (*OF_GROUPS, "reinforce_pp")


@dataclasses.dataclass(frozen=True)
class PPO:
    """The paper's PPO (sections 3 and 4 of ReFT): symbols carry the equation's names. gamma, lam, whiten, value_* are gae's."""

    kl_coef: float = setting(0)
    gamma: float = setting(0, 1)
    lam: float = setting(0, 1)
    clip: float = setting(above=0)
    value_clip: float = setting(above=0)
    value_coef: float = setting(0)
    epochs: int = setting(1)
    minibatch_size: int = setting(1)
    accumulate: int = setting(1)
    whiten: bool = setting()
    # constant: a sum over tokens / (rows x the longest that a response may be), Dr. GRPO's
    reduce: str = setting(one_of=("token", "sequence", "constant"))
    value_init: str = setting(one_of=("zeros", "normal"))
    value_bias: bool = setting()
    # What is done about samples of another distribution than the trained policy's. none: such settings are refused; temper: the
    # policy (and the reference) is the tempered one in scoring too; importance: tokens are weighted by min(p / q, importance_cap).
    correction: str = setting(one_of=("none", "temper", "importance"), default="none")
    importance_cap: float = setting(above=0, default=2.0)
    # What gives gae its values: a head on the policy's trunk, or a decoder of its own that starts as the policy does. Other
    # advantages (`reft_jax/losses/groups.py`) have none.
    critic: str = setting(one_of=("shared", "separate", "none"), default="shared")
    advantage: str = setting(one_of=("gae", *CRITIC_FREE), default="gae")
    clip_high: float = setting(0, default=0.0)  # the ratio's range is 1 - clip to 1 + clip_high; 0 = the same as clip
    # reward: -kl_coef (logp - ref_logp) at each token, inside the scores that a group compares too (GRPO divides by their spread,
    # also where all answers are right); loss: kl_coef times the k3 estimator is added to each token's policy loss, as in GRPO's paper
    kl_in: str = setting(one_of=("reward", "loss"), default="reward")

    @property
    def part_size(self) -> int:
        """Sequences that are in the forward pass together."""
        return self.minibatch_size // self.accumulate


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a response is drawn. The settings act in transformers' order: repetition penalty, forbidden tokens, temperature (0 = greedy),
    top-k, top-p, min-p. Lengths are in tokens."""

    temperature: float = setting(0)
    top_k: int = setting(0)  # 0 = off
    top_p: float = setting(high=1, above=0)  # 1 = off
    min_p: float = setting(0, 1, default=0.0)  # tokens less likely than this share of the likeliest are out; 0 = off
    # on tokens of the prompt and of the response so far; 1 = off
    repetition_penalty: float = setting(above=0, default=1.0)
    forbidden: tuple[int, ...] = setting(0, default=())  # token ids that are never drawn
    stop: tuple[str, ...] = setting(default=())  # strings that end a response; its text is cut before the first of them
    min_new: int = setting(0, default=0)  # no end-of-sequence token before so many tokens
    max_new: int = setting(0, default=0)  # 0 = data.max_response

    @property
    def shapes_distribution(self) -> bool:
        """Whether a token's distribution differs from the model's by more than the temperature."""
        return self != Sampling(self.temperature, 0, 1.0, stop=self.stop, max_new=self.max_new)


WHOLE, GREEDY = Sampling(1.0, 0, 1.0), Sampling(0.0, 0, 1.0)  # the model's own distribution; its likeliest tokens


@dataclasses.dataclass(frozen=True)
class ReFT:
    """Online PPO on the questions. One step = batch_size questions x num_samples responses, graded, then ppo.epochs passes."""

    kind: str = setting(one_of=("reft",))
    init_from: str = setting()
    epochs: float = setting(above=0)
    batch_size: int = setting(1)
    num_samples: int = setting(1)
    sampling: Sampling = setting()
    partial_reward: float = setting(0, 1)
    partial_on: str = setting(one_of=("numeric", "all"))
    ppo: PPO = setting()
    optim: Optim = setting()
    eval_every: float = setting(0)
    eval_batch_size: int = setting(1)  # responses that decode together in a check
    select: str = setting(one_of=("best", "last"))
    select_on: str = setting(one_of=("dev", "test"))
    log_every: int = setting(1)
    log_samples: int = setting(0)  # responses a step that samples.jsonl keeps
    save_every: int = setting(1)
    # The run stops before training if the sampler's log-probs differ by more than this, on average, from those that training
    # computes; 0 = 1e-4 with compute_dtype float32, 0.05 with bfloat16.
    max_logp_gap: float = setting(0, default=0.0)


@dataclasses.dataclass(frozen=True)
class SelfTrain:
    """Self-training (ReFT, section 4.2). offline: SFT from `init_from` on the gold CoTs and on right responses of what
    `sample_from` names. online: each step is one update on the right ones of the current policy's own responses and on the gold CoTs."""

    kind: str = setting(one_of=("self_train",))
    mode: str = setting(one_of=("offline", "online"))
    init_from: str = setting()
    sample_from: str = setting()  # offline: an earlier stage, or a directory as in init_from; online: ""
    num_samples: int = setting(1)  # responses per training question; online: per question of a step
    max_per_question: int = setting(1)  # offline: at most so many different right responses are learnt
    sampling: Sampling = setting()
    sample_batch_size: int = setting(1)  # responses that decode together
    own_weight: float = setting(0)  # online: of the loss of own responses
    gold_weight: float = setting(0)  # online: of the loss of gold CoTs
    epochs: float = setting(above=0)
    batch_size: int = setting(1)  # sequences; online: questions
    accumulate: int = setting(1)
    dropout: float = setting(0, 0.9)
    reduce: str = setting(one_of=("token", "sequence"))
    optim: Optim = setting()
    eval_every: float = setting(
        0
    )  # epochs: offline of all that is learnt, online of the questions; 0 = only at the end
    eval_batch_size: int = setting(1)
    select: str = setting(one_of=("best", "last"))
    select_on: str = setting(one_of=("dev", "test"))
    log_every: int = setting(1)
    log_samples: int = setting(0)  # online: responses a step that samples.jsonl keeps
    save_every: int = setting(1)


@dataclasses.dataclass(frozen=True)
class Reranker:
    """A classifier of (question, response): is the answer right? It learns from graded responses of `sample_from` to the training
    questions, and `evaluate` ranks samples by it (ReFT, section 4.3)."""

    kind: str = setting(one_of=("reranker",))
    init_from: str = setting()
    sample_from: str = setting()  # an earlier stage, or a directory as in init_from
    num_samples: int = setting(1)  # responses per training question
    balanced: bool = setting()  # as many right as wrong ones of each question; else as they were sampled
    sampling: Sampling = setting()
    sample_batch_size: int = setting(1)  # responses that decode together
    epochs: float = setting(above=0)
    batch_size: int = setting(1)  # responses
    accumulate: int = setting(1)
    optim: Optim = setting()
    log_every: int = setting(1)
    save_every: int = setting(1)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Greedy accuracy on dev and test, and num_samples (0 = none) samples for the first num_questions (0 = all) test questions."""

    kind: str = setting(one_of=("evaluate",))
    checkpoints: tuple[tuple[str, str], ...] = setting()  # label -> what init_from would say
    num_samples: int = setting(0)
    num_questions: int = setting(0)
    sampling: Sampling = setting()
    batch_size: int = setting(1)  # responses that decode together
    rerankers: tuple[tuple[str, str], ...] = setting(default=())  # label -> the reranker stage that ranks its samples


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes `init_from` as a Hugging Face directory, `<stage>/hf`."""

    kind: str = setting(one_of=("export",))
    init_from: str = setting()


KINDS = {
    "sft": SFT,
    "reft": ReFT,
    "self_train": SelfTrain,
    "reranker": Reranker,
    "evaluate": Evaluate,
    "export": Export,
}


POLICIES = ("sft", "reft", "self_train")  # kinds of stages whose checkpoints can be sampled from


# What adapters can adapt.
MATRICES = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")


OWN_FOLDERS = ("tokenizer", "plots")  # of a workdir, beside the stages'


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int
    model: Model
    data: Data
    mesh: Mesh
    rewards: Rewards
    stages: tuple[tuple[str, SFT | ReFT | SelfTrain | Reranker | Evaluate | Export], ...]
    logging: Logging = Logging()

    def purpose(self, source: str) -> str:
        """How questions are asked of what `init_from` or `sample_from` names (`data.prompts`): "reft" where the policy was trained on
        its own responses, as a stage here says; else, and for a directory, "evaluate"."""
        stage = dict(self.stages).get(source)
        own = stage is not None and (stage.kind == "reft" or stage.kind == "self_train" and stage.mode == "online")
        return "reft" if own else "evaluate"


def sources(stage) -> tuple[tuple[str, str], ...]:
    """(key, value) of all that say whose parameters a stage begins with, samples from or evaluates."""
    if stage.kind == "evaluate":
        return stage.checkpoints
    samples = stage.kind in ("self_train", "reranker") and stage.sample_from
    return (("init_from", stage.init_from), *([("sample_from", stage.sample_from)] if samples else []))
