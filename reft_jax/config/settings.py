"""The settings that several parts share, as records: legal keys, types, ranges, defaults, and what does not go together.

A stage's own settings stand in its file (`stages/`), those of a loss, an advantage or a reward term in theirs.
"""

import dataclasses
import pathlib
import re

from reft_jax.config import choices
from reft_jax.config.records import choice, setting
from reft_jax.config.setting import divisible
from reft_jax.config.words import listed, nearest
from reft_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")
# names in models and batches
LOGICAL_AXES = ("batch", "embed", "vocab", "heads", "kv_heads", "head_dim", "mlp", "layers")
# What adapters can adapt.
MATRICES = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
OWN_FOLDERS = ("tokenizer", "plots")  # of a workdir, beside the stages'


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
    family: str = setting(room="models/families", default="llama")
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

    def check(self):
        if self.num_heads % self.num_kv_heads:
            yield "num_kv_heads", f"it must divide num_heads = {self.num_heads}"
        if self.positions == "rotary" and (self.rotary_dim or self.head_dim) % 2:
            yield "rotary_dim" if self.rotary_dim else "head_dim", "rotary embeddings need an even size"
        if self.rotary_dim > self.head_dim:
            yield "rotary_dim", f"it must be at most head_dim = {self.head_dim}"
        if self.windows and len(self.windows) != self.num_layers:
            yield "windows", f"got {len(self.windows)} of them; one per layer ({self.num_layers}), or none"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685): W + alpha / rank * A B on every matrix whose name `targets` matches."""

    rank: int = setting(1)
    alpha: float = setting(above=0)
    # a regular expression over attention.q .k .v .o, mlp.gate .up .down
    targets: str = setting(default=r"attention\..*|mlp\..*")

    def check(self):
        try:
            re.compile(self.targets)
        except re.error as error:
            yield "targets", f"not a regular expression: {error}"


@dataclasses.dataclass(frozen=True)
class Model:
    """`directory`: a Hugging Face directory, a GGUF file or the name of a shipped model, whose sizes and tokenizer are used; else `arch`."""

    name: str = setting(default="")
    directory: str = setting(default="", path=True)
    arch: Arch | None = setting(default=None)
    param_dtype: str = setting(one_of=("float32", "bfloat16"), default="float32")
    compute_dtype: str = setting(one_of=("float32", "bfloat16"), default="float32")
    remat: str = setting(one_of=("none", "block", "dots"), default="none")
    logits_chunk: int = setting(1, default=128)  # positions whose [B, chunk, V] float32 logits exist at a time
    # Tokens that a device learns from or scores at a time: a larger batch is gone through in parts, one after the other (0 = as one,
    # unless `accumulate` says otherwise).
    slice_tokens: int = setting(0, default=1024, free=True)
    vocab_multiple: int = setting(1, default=1)  # rows of the embedding are padded to it, for a mesh axis to divide
    # `reft_jax/models/attention.py` says which when
    attention: str = setting(one_of=("auto", "xla", "kernel"), default="auto")
    lora: Lora | None = setting(default=None)  # train low-rank adapters instead of the whole model
    base: str = setting(one_of=("full", "int8", "int4", "nf4"), default="full")  # the frozen weights under adapters

    def check(self):
        if (self.arch is None) == (self.directory == ""):
            yield "", "set either directory (config.json and tokenizer are read there) or arch (a new model), not both"
        if self.base != "full" and self.lora is None:
            yield "base", "without config.model.lora; only the frozen base under adapters is quantized"


@dataclasses.dataclass(frozen=True)
class Data:
    """The task, the form of its prompts and targets, and its limits (lengths in tokens, sizes in records)."""

    task: str = setting(room="tasks")
    cot: str = setting(one_of=("program", "nl"))
    name: str = setting(default="")  # a label; it decides nothing
    # tfds: TensorFlow Datasets, where no file is named
    source: str = setting(one_of=("generated", "files", "tfds"), default="files")
    train_file: str = setting(default="", path=True)
    test_file: str = setting(default="", path=True)
    seed: int = setting(0, default=0)  # of the generated problems, or of the dev split
    num_train: int = setting(0, default=0)  # generated: how many; files: at most so many, 0 = all
    num_test: int = setting(0, default=0)
    dev_size: int = setting(0, default=0)
    annotations: str = setting(one_of=("diverse", "canonical", "worked", "corpus"), default="diverse")
    docstring: bool = setting(default=True)
    append_prefix: str = setting(one_of=("everywhere", "rollouts", "nowhere"), default="everywhere")
    # Both are decided as a run begins, and config.json says how. Whether prompts begin with the BOS token; auto: where the tokenizer's own
    # post-processor puts it before a text.
    bos: str = setting(one_of=("auto", "on", "off"), default="auto")
    # Which piece of a program has the line end between its prefix and the rest; auto: the rest where a pretrained model's tokenizer makes one
    # token of it and the spaces that follow (`data/prompts.py`).
    line_end: str = setting(one_of=("auto", "prefix", "rest"), default="auto")
    calculator_marks: str = setting(one_of=("strip", "keep"), default="strip")
    matcher: str = setting(room="rewards/matchers", default="reft")
    tokenizer: str = setting(one_of=("word", "bpe"), default="bpe")
    vocab_size: int = setting(300, default=1000)
    max_prompt: int = setting(1, default=300)
    max_response: int = setting(1, default=400)
    prompt_buckets: tuple[int, ...] = setting(1, default=(64, 128, 192, 300))
    response_buckets: tuple[int, ...] = setting(1, default=(64, 128, 192, 400))
    # several sequences share a row in training and scoring: `reft_jax/data/packing.py`
    pack: bool = setting(default=True)
    # The share of the test questions that may stand in the training data, compared by their words. Up to 1 % is noted and run: it
    # moves an accuracy by at most a point, half of a 95 % interval at 1,000 questions. GSM8K and SVAMP share none.
    max_overlap: float = setting(0, 1, default=0.01)
    tfds_dir: str = setting(default="", path=True)  # where TFDS keeps what it built; "" = its own default
    manual_dir: str = setting(default="", path=True)  # a folder with the original files, so that TFDS downloads nothing
    questions_file: str = setting(
        default="", path=True
    )  # stories: a training file whose questions are read as text too

    def check(self):
        task = choices.load("tasks", self.task)()
        if self.name != self.task and self.name in choices.names("tasks"):
            now = f"set config.data.task (now {self.task!r})"
            yield "name", f"a label decides nothing, and this is a task's name: {now}"
        if self.source not in task.sources:
            yield "source", f"legal for {self.task} are {listed(task.sources)}"
        yield from task.check(self)
        room = "rewards/matchers"
        if task.kind not in choices.load(room, self.matcher).kinds:
            readers = [name for name in choices.names(room) if task.kind in choices.load(room, name).kinds]
            yield "matcher", f"the answers of {self.task} are of kind {task.kind!r}, which {listed(readers)} read"
        for key in ("tfds_dir", "manual_dir"):
            if getattr(self, key) and self.source != "tfds":
                yield key, f"with source {self.source!r}; it is for 'tfds'"
        for name in ("prompt", "response"):
            buckets, limit = getattr(self, f"{name}_buckets"), getattr(self, f"max_{name}")
            if list(buckets) != sorted(set(buckets)) or buckets[-1] != limit:
                yield f"{name}_buckets", f"lengths must rise and end with max_{name} = {limit}"


def _rules(value, path: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """mesh.rules: which mesh axes each logical axis is laid over."""
    if not isinstance(value, dict):
        raise InputError(f"{path}: got {value!r}; it must be a group logical axis -> tuple of mesh axes")
    for key, axes in value.items():
        if key not in LOGICAL_AXES:
            raise InputError(
                f"{path}.{key}: unknown logical axis; {nearest(key, LOGICAL_AXES)}known are {listed(LOGICAL_AXES)}"
            )
        if not isinstance(axes, (tuple, list)) or any(axis not in MESH_AXES for axis in axes):
            raise InputError(f"{path}.{key}: got {axes!r}; it must be a tuple of mesh axes: {listed(MESH_AXES)}")
    return tuple((key, tuple(axes)) for key, axes in value.items())


RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", ("fsdp",)),
    ("vocab", ("tensor",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh axes (one may be -1 = what is left), and which mesh axes each logical axis is laid over."""

    data: int = setting(-1, default=-1, free=True)
    fsdp: int = setting(-1, default=1, free=True)
    tensor: int = setting(-1, default=1, free=True)
    rules: tuple[tuple[str, tuple[str, ...]], ...] = setting(default=RULES, parse=_rules)
    # where parameters lie while sampling: `reft_jax/mesh/sharding.py`
    decode: str = setting(one_of=("replicated", "tensor", "as_trained"), default="replicated", free=True)
    # the memory of the optimizer's moments between updates
    moments: str = setting(one_of=("device", "host"), default="device", free=True)

    def check(self):
        sizes = [self.data, self.fsdp, self.tensor]
        if 0 in sizes or sizes.count(-1) > 1:
            got = f"got data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}"
            yield "", f"{got}; sizes are positive, at most one is -1"


@dataclasses.dataclass(frozen=True)
class Verifier:
    """How model-written programs are run, and how many of the gold answers may fail to grade correct (a fraction)."""

    timeout_s: float = setting(above=0, default=2.0)
    memory_mb: int = setting(64, default=512)
    workers: int = setting(0, default=0, free=True)  # 0 = one per core
    max_gold_failures: float = setting(0, 1, default=0.02)
    max_verifier_failures: float = setting(0, 1, default=0.1)  # share of a batch that may fail for no fault of its own
    sandbox: str = setting(one_of=("auto", "require"), default="auto")  # require: all layers of rewards/sandbox.py

    @property
    def limits(self) -> dict:
        """The arguments of `run_programs`."""
        return dict(timeout_s=self.timeout_s, memory_mb=self.memory_mb, workers=self.workers)


@dataclasses.dataclass(frozen=True)
class Logging:
    """How a run can be watched, beside each stage's metrics.jsonl, which is always written. Nothing here changes what is computed."""

    tensorboard: bool = setting(default=True, free=True)  # event files in the stages' folders
    wandb: str = setting(one_of=("off", "offline", "online"), default="off", free=True)
    wandb_project: str = setting(default="reft_jax", free=True)
    # first and last step that every training stage traces
    profile_steps: tuple[int, ...] = setting(1, default=(), free=True)

    def check(self):
        steps = self.profile_steps
        if steps and (len(steps) != 2 or steps[0] > steps[1]):
            yield "profile_steps", "it must be (first, last), the steps to trace, or () for none"
        if self.wandb != "off" and not self.wandb_project:
            yield "wandb_project", "a run of W&B belongs to a project: name one"


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a response is drawn. The settings act in transformers' order: repetition penalty, forbidden tokens, temperature (0 = greedy),
    top-k, top-p, min-p. Lengths are in tokens."""

    temperature: float = setting(0, default=1.0)
    top_k: int = setting(0, default=0)  # 0 = off
    top_p: float = setting(high=1, above=0, default=1.0)  # 1 = off
    min_p: float = setting(0, 1, default=0.0)  # tokens less likely than this share of the likeliest are out; 0 = off
    # on tokens of the prompt and of the response so far; 1 = off
    repetition_penalty: float = setting(above=0, default=1.0)
    forbidden: tuple[int, ...] = setting(0, default=())  # token ids that are never drawn
    stop: tuple[str, ...] = setting(default=())  # strings that end a response; its text is cut before the first of them
    min_new: int = setting(0, default=0)  # no end-of-sequence token before so many tokens
    max_new: int = setting(0, default=0)  # 0 = data.max_response

    def check(self):
        if "" in self.stop:
            yield "stop", "an empty string would end every response at once"

    def check_in(self, data: Data):
        """What does not go with the data's lengths."""
        max_new = self.max_new or data.max_response
        if max_new > data.max_response:
            yield "max_new", f"it must be at most config.data.max_response = {data.max_response}"
        if self.min_new > max_new:
            yield "min_new", f"a response has at most {max_new} tokens"

    @property
    def greedy(self) -> "Sampling":
        """The likeliest tokens of responses that end, and may be, as these."""
        of_response = ("forbidden", "stop", "min_new", "max_new")
        return Sampling(0.0, 0, 1.0, **{name: getattr(self, name) for name in of_response})

    @property
    def shapes_distribution(self) -> bool:
        """Whether a token's distribution differs from the model's by more than the temperature."""
        return self != Sampling(self.temperature, 0, 1.0, stop=self.stop, max_new=self.max_new)


WHOLE, GREEDY = Sampling(1.0, 0, 1.0), Sampling(0.0, 0, 1.0)  # the model's own distribution; its likeliest tokens


# ------------------------------------------------------------------ what stages share


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What every stage that trains has. Its file adds what is its own, `losses` among it."""

    # a stage, a Hugging Face directory, a checkpoint's folder, a shipped model's name, or random
    init_from: str = setting(path=True)
    epochs: float = setting(above=0)
    batch_size: int = setting(1)
    optim: object = choice("optim", use="adamw")
    log_every: int = setting(1, default=10, free=True)
    save_every: int = setting(1, default=200, free=True)

    is_policy = False  # its checkpoints answer questions
    explores = False  # it learns from its own responses, and its prompts are those of rollouts
    learns_from_grades = False

    def sources(self) -> tuple[tuple[str, str], ...]:
        """(key, value) of all that say whose parameters it begins with, samples from or evaluates."""
        samples = getattr(self, "sample_from", "")
        return (("init_from", self.init_from), *([("sample_from", samples)] if samples else []))

    @property
    def objective(self) -> tuple:
        """All losses, without their labels."""
        return tuple(loss for _, loss in self.losses)

    @property
    def how(self) -> dict:
        """The settings of its update (`training.update.make_update`)."""
        return {key: getattr(self, key) for key in ("accumulate", "dropout", "reduce") if hasattr(self, key)}

    @property
    def divisible(self) -> bool:
        """Whether its updates may be gone through in more parts than it asks for."""
        return divisible(self.objective, getattr(self, "dropout", 0.0))

    def check(self):
        covered = self.optim.schedule_epochs
        if covered and covered < self.epochs:
            yield "optim.schedule_epochs", f"it must cover epochs = {self.epochs} (0 = the same)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked(Training):
    """A stage that is checked on questions while it trains, and chooses a checkpoint by that."""

    eval_every: float = setting(0, default=0.0)  # epochs; 0 = only at the end
    eval_batch_size: int = setting(1, default=200)  # responses that decode together in a check
    select: str = setting(one_of=("best", "last"), default="best")
    select_on: str = setting(one_of=("dev", "test"), default="dev")

    is_policy = True

    def check_in(self, recipe, earlier):
        if self.select == "best" and self.select_on == "dev" and not recipe.data.dev_size:
            yield "select_on", "'dev' needs config.data.dev_size > 0 (or select='last', or select_on='test')"


# What an update of responses can give a loss (`types.Outputs`); with a critic also values.
OUTPUTS = ("logp", "entropy", "hidden", "ref_logp", "ref_kl", "attention_row")


def whole(losses, accumulate: int, key: str = "accumulate"):
    """(key, what is legal) where a batch is split whose rows a loss needs together."""
    for label, loss in losses:
        if accumulate > 1 and getattr(loss, "together", "token") in ("group", "batch"):
            yield key, f"losses.{label} needs the rows of a {loss.together} together: it must be 1"


def sampled(stage):
    """(key, what is legal) about the sampling of a stage that learns from several responses to a question."""
    if stage.sampling.temperature == 0.0:
        yield "sampling.temperature", "all responses to a question would be the same: it must be > 0"


def rounded(optim, model: Model):
    """(key, what is legal) about how `optim` rounds the parameters that are trained: adapters, which are float32, or the whole model."""
    rounding = getattr(optim, "rounding", "nearest")
    if model.lora is None and model.param_dtype == "bfloat16" and rounding != "stochastic":
        told = (
            "with config.model.param_dtype 'bfloat16', whose parameters lose most updates when sums are rounded to the nearest (at lr "
            "3e-7 AdamW moves them by 0.4 % of what it moves float32's): legal is 'stochastic'; or train float32 "
            "(config.model.param_dtype) or adapters (config.model.lora)"
        )
        yield "rounding", told
    elif (model.lora is not None or model.param_dtype == "float32") and rounding == "stochastic":
        trained = "adapters are float32" if model.lora is not None else "config.model.param_dtype is 'float32'"
        yield "rounding", f"{trained}, which is not rounded: legal is 'nearest'"


def source_answers(stage, earlier: dict):
    """(key, what is legal) where `sample_from` names nothing that can answer questions."""
    known = stage.sample_from in earlier
    if stage.sample_from in ("", "random") or known and not getattr(earlier[stage.sample_from], "is_policy", False):
        policies = listed(name for name, other in earlier.items() if getattr(other, "is_policy", False))
        stages = f"an earlier stage that trains a policy (here {policies})"
        legal = f"{stages}, or a directory of a model or of a checkpoint"
        yield "sample_from", f"it must name what answers the training questions: {legal}"


def unmet(losses, outputs, columns, what: str):
    """(key, what is legal) for the first loss of ((label, loss), ...) that needs what is not there: outputs of the model, or columns of the batch;
    and where there is no loss."""
    if not losses:
        yield "losses", "something must be minimised: legal is a group of one loss or more"
    for label, loss in losses:
        for name, there in (("needs", outputs), ("reads", columns)):
            if missing := [one for one in getattr(loss, name, ()) if one not in there]:
                gives = f"which {what} does not give (it gives {listed(there)})"
                yield f"losses.{label}", f"it {name} {listed(missing)}, {gives}"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The whole checked config. `kinds`: of each stage, the file that it is a record of."""

    seed: int
    model: Model
    data: Data
    mesh: Mesh
    verifier: Verifier
    stages: tuple[tuple[str, object], ...]
    kinds: tuple[tuple[str, str], ...]
    logging: Logging = Logging()

    def kind(self, name: str) -> str:
        """The kind of a stage here ("" for any other name); of a file of the user's own, its name without the folder and .py."""
        return pathlib.PurePath(dict(self.kinds).get(name, "")).name.partition(".py")[0]

    def purpose(self, source: str) -> str:
        """How questions are asked of what `init_from` or `sample_from` names (`data.prompts`): "rollout" where the policy was trained on
        its own responses, as a stage here says; else, and for a directory, "ask"."""
        stage = dict(self.stages).get(source)
        return "rollout" if stage is not None and getattr(stage, "explores", False) else "ask"
