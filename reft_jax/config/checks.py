"""What no single key of a config can tell: sizes that must divide, settings that must go together, stages that must come in order.

`check` is called by `config.build` for every config; each rule raises InputError with the key, its value and what is legal.
"""

import dataclasses
import pathlib
import re

from reft_jax.config.records import nearest
from reft_jax.config.settings import (
    CRITIC_FREE,
    OF_GROUPS,
    OWN_FOLDERS,
    POLICIES,
    WHOLE,
    Arch,
    Config,
    Data,
    Evaluate,
    Logging,
    Mesh,
    Model,
    Optim,
    ReFT,
    Reranker,
    Sampling,
    SelfTrain,
    sources,
)
from reft_jax.errors import InputError
from reft_jax.rewards import matchers
from reft_jax.rewards.score import TASKS


def check(config: Config, *, reads_data: bool):
    """InputError for the first thing that does not go together. reads_data False: files need not be named."""
    _check_model(config.model)
    _check_data(config.data, reads_data)
    _check_mesh(config.mesh)
    _check_logging(config.logging)
    earlier, labels = {}, []
    for name, stage in config.stages:
        _check_place(name, stage, config, earlier, labels)
        _check_stage(stage, config, earlier, f"config.stages.{name}", reads_data)
        earlier[name] = stage


def check_arch(arch: Arch, path: str):
    """InputError where sizes do not go together; `path` names the place in messages."""
    if arch.num_heads % arch.num_kv_heads:
        raise InputError(f"{path}.num_kv_heads: got {arch.num_kv_heads}; it must divide num_heads = {arch.num_heads}")
    if arch.positions == "rotary" and (arch.rotary_dim or arch.head_dim) % 2:
        key = "rotary_dim" if arch.rotary_dim else "head_dim"
        raise InputError(f"{path}.{key}: got {getattr(arch, key)}; rotary embeddings need an even size")
    if arch.rotary_dim > arch.head_dim:
        raise InputError(f"{path}.rotary_dim: got {arch.rotary_dim}; it must be at most head_dim = {arch.head_dim}")
    if arch.windows and len(arch.windows) != arch.num_layers:
        raise InputError(f"{path}.windows: got {len(arch.windows)} of them; one per layer ({arch.num_layers}), or none")


def _check_model(model: Model):
    if (model.arch is None) == (model.directory == ""):
        raise InputError(
            "config.model: set either directory (config.json and tokenizer are read there) or arch (a new model), not both"
        )
    if model.arch is not None:
        check_arch(model.arch, "config.model.arch")
    if model.base != "full" and model.lora is None:
        raise InputError(
            f"config.model.base: got {model.base!r} without config.model.lora; only the frozen base under adapters is quantized"
        )
    if model.lora is not None:
        try:
            re.compile(model.lora.targets)
        except re.error as error:
            raise InputError(
                f"config.model.lora.targets: got {model.lora.targets!r}; not a regular expression: {error}"
            ) from error


def _check_data(data: Data, reads_data: bool):
    if (data.name in ("arithmetic", "stories")) != (data.source == "generated"):
        raise InputError(
            f"config.data.source: got {data.source!r} with name {data.name!r}; arithmetic and stories are generated, the others come from "
            "files or tfds"
        )
    if data.questions_file and data.name != "stories":
        raise InputError(
            f"config.data.questions_file: got {data.questions_file!r} with name {data.name!r}; it is for stories"
        )
    if data.name == "stories" and data.annotations not in ("diverse", "corpus"):
        raise InputError(
            f"config.data.annotations: got {data.annotations!r} with name 'stories'; legal are diverse (all CoTs of the kind data.cot) and "
            "corpus (programs and prose)"
        )
    if data.matcher not in (legal := matchers.names(TASKS[data.name])):
        raise InputError(
            f"config.data.matcher: got {data.matcher!r}; the answers of {data.name} are of kind {TASKS[data.name]!r}, which "
            f"{', '.join(legal)} read"
        )
    if data.source == "files" and not data.train_file and reads_data:
        raise InputError(
            f"config.data.train_file: got ''; {data.name} is read from files: say which (:train_file=PATH)"
        )
    if data.source == "tfds" and not data.train_file and reads_data and (data.cot == "program" or data.name == "svamp"):
        raise InputError(
            f"config.data.train_file: got ''; the published {data.name} has no {data.cot} CoT: with source 'tfds' name a training file of "
            "the ReFT authors' form (the test questions come from TFDS)"
        )
    for key in ("tfds_dir", "manual_dir"):
        if getattr(data, key) and data.source != "tfds":
            raise InputError(
                f"config.data.{key}: got {getattr(data, key)!r} with source {data.source!r}; it is for 'tfds'"
            )
    if data.source == "generated" and not data.num_train:
        raise InputError("config.data.num_train: got 0; generated data needs a number of training questions")
    for name in ("prompt", "response"):
        buckets, limit = getattr(data, f"{name}_buckets"), getattr(data, f"max_{name}")
        if list(buckets) != sorted(set(buckets)) or buckets[-1] != limit:
            raise InputError(
                f"config.data.{name}_buckets: got {buckets}; lengths must rise and end with max_{name} = {limit}"
            )


def _check_logging(logging: Logging):
    steps = logging.profile_steps
    if steps and (len(steps) != 2 or steps[0] > steps[1]):
        raise InputError(
            f"config.logging.profile_steps: got {steps}; it must be (first, last), the steps to trace, or () for none"
        )
    if logging.wandb != "off" and not logging.wandb_project:
        raise InputError("config.logging.wandb_project: got ''; a run of W&B belongs to a project: name one")


def _check_mesh(mesh: Mesh):
    sizes = [mesh.data, mesh.fsdp, mesh.tensor]
    if 0 in sizes or sizes.count(-1) > 1:
        raise InputError(
            f"config.mesh: got data={mesh.data}, fsdp={mesh.fsdp}, tensor={mesh.tensor}; sizes are positive, at most one is -1"
        )


def _check_place(name: str, stage, config: Config, earlier: dict, labels: list[str]):
    """The stage's name, and that what it begins with or evaluates comes before it; notes an evaluate stage's `labels`."""
    path = f"config.stages.{name}"
    if not name.isidentifier():
        raise InputError(f"{path}: a stage's name is also a folder's: letters, digits and underscores only")
    if name in OWN_FOLDERS:
        raise InputError(f"{path}: {name!r} is a folder of the workdir; give the stage another name")
    later = {n for n, _ in config.stages} - set(earlier)
    for key, source in sources(stage):
        if source in later:
            raise InputError(
                f"{path}.{key}: {source!r} comes no earlier than {name!r}; stages run in order (a ConfigDict keeps it with sort_keys=False)"
            )
        if source in earlier and earlier[source].kind == "reranker":
            raise InputError(
                f"{path}.{key}: {source!r} is a re-ranker, which answers no questions; an evaluate stage names it in its rerankers"
            )
    for label, _ in stage.checkpoints if stage.kind == "evaluate" else ():
        if not label.strip(".") or label != pathlib.PurePath(label).name or label in (*OWN_FOLDERS, *labels):
            raise InputError(
                f"{path}.checkpoints: label {label!r} cannot be used: it is a folder's name, and no other evaluation may have it"
            )
        labels.append(label)


def _check_stage(stage, config: Config, earlier: dict, path: str, reads_data: bool):
    """A stage's own settings, by its kind."""
    data = config.data
    if stage.kind == "sft":
        if stage.batch_size % stage.accumulate:
            raise InputError(
                f"{path}.accumulate: got {stage.accumulate}; it must divide batch_size = {stage.batch_size}"
            )
        if stage.continue_run and (stage.init_from not in earlier or earlier[stage.init_from].kind != "sft"):
            raise InputError(
                f"{path}.continue_run: init_from must name an earlier sft stage to go on with; got {stage.init_from!r}"
            )
    if stage.kind == "reft":
        _check_method(stage, path)
        _check_on_policy(stage, path)
    if stage.kind in ("self_train", "reranker"):
        _check_sampled_stage(stage, earlier, path)
    if stage.kind == "evaluate":
        _check_rerankers(stage, earlier, path)
    if stage.kind in ("reft", "self_train", "reranker", "evaluate"):
        _check_sampling(stage.sampling, data, f"{path}.sampling")
    if stage.kind in ("sft", "reft", "self_train", "reranker"):
        _check_optim(stage.optim, stage.epochs, f"{path}.optim")
    if stage.kind in POLICIES and stage.select == "best":
        if stage.select_on == "dev" and not data.dev_size:
            raise InputError(
                f"{path}.select_on: 'dev' needs config.data.dev_size > 0 (or select='last', or select_on='test')"
            )
        if stage.select_on == "test" and data.source == "files" and not data.test_file and reads_data:
            raise InputError(f"{path}.select_on: 'test' needs config.data.test_file")


def _check_optim(optim: Optim, epochs: float, path: str):
    if optim.warmup > optim.hold:
        raise InputError(f"{path}.hold: got {optim.hold}; the rate cannot fall before warmup = {optim.warmup} ends")
    if optim.schedule_epochs and optim.schedule_epochs < epochs:
        raise InputError(
            f"{path}.schedule_epochs: got {optim.schedule_epochs}; it must cover epochs = {epochs} (0 = the same)"
        )


def _check_sampling(sampling: Sampling, data: Data, path: str):
    max_new = sampling.max_new or data.max_response
    if max_new > data.max_response:
        raise InputError(
            f"{path}.max_new: got {max_new}; it must be at most config.data.max_response = {data.max_response}"
        )
    if sampling.min_new > max_new:
        raise InputError(f"{path}.min_new: got {sampling.min_new}; a response has at most {max_new} tokens")
    if "" in sampling.stop:
        raise InputError(f"{path}.stop: got {sampling.stop!r}; an empty string would end every response at once")


def _check_on_policy(stage: ReFT, path: str):
    """Refuses sampling whose log-probs would not be those of the policy that PPO trains, unless it is told how to account for them."""
    sampling, correction = stage.sampling, stage.ppo.correction
    if sampling.temperature == 0.0:
        raise InputError(f"{path}.sampling.temperature: got 0.0; PPO explores by sampling: it must be > 0")
    tempered = sampling.temperature != 1.0 and correction == "none"
    if tempered or sampling.shapes_distribution and correction != "importance":
        names = [f.name for f in dataclasses.fields(sampling) if f.name not in ("stop", "max_new")]
        changed = [name for name in names if getattr(sampling, name) != getattr(WHOLE, name)]
        given = ", ".join(f"{name}={getattr(sampling, name)!r}" for name in changed)
        raise InputError(
            f"{path}.sampling: got {given}; PPO's log-probs are those of the whole distribution: temperature 1, top_k 0, top_p 1 and no "
            f"other changes. Or set {path}.ppo.correction: 'temper' trains the tempered policy (a temperature alone), 'importance' weights "
            "tokens by min(p / q, importance_cap)"
        )


def _check_method(stage: ReFT, path: str):
    """Refuses batches that do not divide, an advantage without the critic or the samples that it is made of, and a critic that nothing
    reads."""
    ppo, rows = stage.ppo, stage.batch_size * stage.num_samples
    if rows % ppo.minibatch_size:
        raise InputError(
            f"{path}.ppo.minibatch_size: got {ppo.minibatch_size}; it must divide batch_size x num_samples = {rows}"
        )
    if ppo.minibatch_size % ppo.accumulate:
        raise InputError(
            f"{path}.ppo.accumulate: got {ppo.accumulate}; it must divide minibatch_size = {ppo.minibatch_size}"
        )
    if ppo.advantage == "gae" and ppo.critic == "none":
        raise InputError(
            f"{path}.ppo.critic: got 'none' with advantage 'gae', which is made of a critic's values; set it to 'shared' or 'separate', "
            f"or {path}.ppo.advantage to one of {', '.join(CRITIC_FREE)}"
        )
    if ppo.advantage != "gae" and ppo.critic != "none":
        raise InputError(
            f"{path}.ppo.critic: got {ppo.critic!r} with advantage {ppo.advantage!r}, which reads no values; set it to 'none', or "
            f"{path}.ppo.advantage to 'gae'"
        )
    if ppo.advantage in OF_GROUPS and stage.num_samples < 2:
        raise InputError(
            f"{path}.num_samples: got {stage.num_samples} with ppo.advantage {ppo.advantage!r}, which compares the responses to one "
            "question; it must be >= 2"
        )


def _check_sampled_stage(stage: SelfTrain | Reranker, earlier: dict, path: str):
    """What self_train and reranker ask of each other and of the stages before them."""
    policies = ", ".join(name for name, other in earlier.items() if other.kind in POLICIES) or "none"
    online = stage.kind == "self_train" and stage.mode == "online"
    if online and stage.sample_from:
        raise InputError(
            f"{path}.sample_from: got {stage.sample_from!r}; mode 'online' samples from the policy that it trains: set ''"
        )
    known = stage.sample_from in earlier
    if not online and (
        stage.sample_from in ("", "random") or known and earlier[stage.sample_from].kind not in POLICIES
    ):
        raise InputError(
            f"{path}.sample_from: got {stage.sample_from!r}; it must name what answers the training questions: an earlier stage of kind "
            f"{', '.join(POLICIES)} (here {policies}), or a directory of a model or of a checkpoint"
        )
    if stage.sampling.temperature == 0.0:
        raise InputError(
            f"{path}.sampling.temperature: got 0.0; all responses to a question would be the same: it must be > 0"
        )
    rows = stage.batch_size * (stage.num_samples + 1) if online else stage.batch_size
    if rows % stage.accumulate:
        what = "batch_size x (num_samples + 1)" if online else "batch_size"
        raise InputError(f"{path}.accumulate: got {stage.accumulate}; it must divide {what} = {rows}")
    if online and not stage.own_weight + stage.gold_weight:
        raise InputError(f"{path}.own_weight: got 0.0, as is gold_weight; one of them must be > 0")


def _check_rerankers(stage: Evaluate, earlier: dict, path: str):
    labels = [label for label, _ in stage.checkpoints]
    known = ", ".join(name for name, other in earlier.items() if other.kind == "reranker") or "none"
    for label, source in stage.rerankers:
        if label not in labels:
            raise InputError(
                f"{path}.rerankers.{label}: unknown label; {nearest(label, labels)}labels of checkpoints are {', '.join(labels)}"
            )
        if source not in earlier or earlier[source].kind != "reranker":
            raise InputError(
                f"{path}.rerankers.{label}: got {source!r}; it must name an earlier stage of kind reranker: legal are {known}"
            )
    if stage.rerankers and not stage.num_samples:
        raise InputError(f"{path}.num_samples: got 0; rerankers choose among samples: it must be >= 1")
