"""Fragments that the experiments share. They say what they change; every default, and what is legal, stands with its setting (`reft_jax/config/`,
`reft_jax/stages/` and the other rooms), and a run's config.json has them all."""

from ml_collections import ConfigDict

from reft_jax.configs.models import PRESETS, arch  # noqa: F401  (configs spell a new model with common.arch)


def parse_arg(arg: str, **defaults):
    """ "a=1,b,c=x" as a namespace-like ConfigDict: `b` alone means True; values take the type of their default."""
    values = dict(defaults)
    for item in filter(None, arg.split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults:
            raise ValueError(f"unknown argument {key!r}; known are {', '.join(defaults)}")
        default = defaults[key]
        if isinstance(default, bool):
            if text.lower() not in ("", "true", "1", "false", "0"):
                raise ValueError(f"argument {key}: got {text!r}; it must be True or False")
            values[key] = not equals or text.lower() in ("true", "1")
        else:
            try:
                values[key] = type(default)(text)
            except ValueError as error:
                raise ValueError(
                    f"argument {key}: got {text!r}; it must be of type {type(default).__name__}"
                ) from error
    return ConfigDict(values)


def one_of(name: str, value: str, legal):
    """The entry of `legal` that an argument names."""
    if value not in legal:
        raise ValueError(f"argument {name}: got {value!r}; legal are {', '.join(legal)}")
    return legal[value]


# ------------------------------------------------------------------ models


def model(name: str, lora=None, base="full"):
    """A preset of a new model by name, or a Hugging Face directory (or GGUF file, or shipped model) whose config and tokenizer are used. A preset of
    a billion parameters computes in bfloat16 and keeps no activations inside its blocks; neither that nor a toy goes through a batch in slices."""
    known = dict(arch=PRESETS[name]) if name in PRESETS else dict(directory=name)
    large = dict(compute_dtype="bfloat16", remat="block", slice_tokens=0) if is_large(name) else {}
    toy = dict(slice_tokens=0) if name in TOYS else {}
    return dict(name=name, lora=lora, base=base) | known | large | toy


TOYS = "arithmetic_base", "demo", "tiny"  # whose batches take little memory


def is_large(name: str) -> bool:
    """Whether it is a preset with a billion parameters in its blocks."""
    if name not in PRESETS:
        return False
    keys = PRESETS[name]
    heads = 2 * keys["head_dim"] * (keys["num_heads"] + keys["num_kv_heads"])
    return keys["num_layers"] * keys["dim"] * (heads + keys["ffn_dim"] * (3 if keys.get("gated", True) else 2)) > 0.9e9


def lora(rank: int, *, alpha: float = 16.0, **changes):
    """Low-rank adapters, on all matrices unless `targets` says otherwise."""
    return dict(rank=rank, alpha=alpha) | changes


# ------------------------------------------------------------------ data


def arithmetic(cot="program", annotations="diverse", *, seed=0, num_train=1000, dev_size=400, num_test=1000):
    """The generated problems: 3 or 4 operations, half of the sentences in phrasings that the base model has never seen."""
    response = one_of("cot", cot, dict(program=36, nl=48))
    return dict(
        task="arithmetic",
        cot=cot,
        source="generated",
        seed=seed,
        num_train=num_train,
        num_test=num_test,
        dev_size=dev_size,
        annotations=annotations,
        docstring=False,
        tokenizer="word",
        vocab_size=300,
        max_prompt=50,
        max_response=response,
        prompt_buckets=(50,),
        response_buckets=(response,),
        pack=False,  # all problems are about as long
    )


def stories(
    cot="both",
    *,
    seed=0,
    num_train=300_000,
    dev_size=200,
    num_test=200,
    questions_file="",
    vocab_size=2000,
    smoke=False,
):
    """Generated word problems in everyday wording, for pretraining; cot: program, nl or both (then the checks ask for programs).
    questions_file: a training file whose questions are learnt as text, without their solutions."""
    one_of("cot", cot, dict(program=None, nl=None, both=None))
    return dict(
        task="stories",
        cot="program" if cot == "both" else cot,
        source="generated",
        seed=seed,
        num_train=num_train,
        num_test=num_test,
        dev_size=dev_size,
        annotations="corpus" if cot == "both" else "diverse",
        docstring=False,
        line_end="prefix",  # as the runs that were measured have it, with a `base` too
        vocab_size=vocab_size,
        questions_file=questions_file,
        pack=not smoke,  # one program to compile
        **text_lengths(cot, smoke=smoke),
    )


def text_lengths(cot, *, smoke=False):
    """Limits for short word problems (SVAMP's) with a tokenizer of `stories`, in tokens; programs have no docstring. smoke: for a
    tokenizer that has seen little."""
    prompts, responses = ((96, 144), (160,) if cot == "program" else (160, 256)) if not smoke else ((160,), (160,))
    return dict(max_prompt=prompts[-1], max_response=responses[-1], prompt_buckets=prompts, response_buckets=responses)


def files(task, cot, train_file, test_file, *, dev_size, **changes):
    """A data set in the ReFT authors' JSON form, or GSM8K's JSONL. Lengths: the paper's 300 for the prompt, 700 in all."""
    return dict(task=task, cot=cot, train_file=train_file, test_file=test_file, dev_size=dev_size) | changes


# ------------------------------------------------------------------ the rest


def mesh(model):
    """All devices in a row of `data`; a large preset is split, 16 ways by fsdp (which divides the paper's batches) and the rest by tensor."""
    return dict(data=1, fsdp=16, tensor=-1) if is_large(model["name"]) else {}


def optim(lr, **changes):
    """AdamW, unless `use` names another. The default schedule is constant; schedule=dict(hold=h, final=0.0) falls linearly to 0 from the
    fraction h of the run on."""
    return dict(lr=lr) | changes


def sft(init_from, epochs, optim, *, batch_size, **changes):
    return dict(kind="sft", init_from=init_from, epochs=float(epochs), batch_size=batch_size, optim=optim) | changes


# Advantages without a critic, and what their papers change beside: where the KL counts and by which estimate, and how tokens are averaged.
CRITIC_FREE = dict(
    grpo=dict(advantage=dict(use="grpo", kl=dict(estimator="k3"))),
    dr_grpo=dict(advantage=dict(use="dr_grpo", kl={"in": "loss", "estimator": "k3"}), reduce="constant"),
    rloo=dict(advantage=dict(use="rloo")),
    reinforce_pp=dict(advantage=dict(use="reinforce_pp")),
)


def method(name="reft", *, kl_coef, **critic):
    """What a method changes in a reft stage: reft is the paper's PPO, whose critic has the settings `critic`; the others have none."""
    if name not in CRITIC_FREE:
        return dict(advantage=dict(kl=dict(coef=kl_coef), critic=critic))
    change = CRITIC_FREE[name]
    kl = change["advantage"].get("kl", {}) | dict(coef=kl_coef)
    return change | dict(advantage=change["advantage"] | dict(kl=kl))


def reft(init_from, epochs, optim, *, batch_size, minibatch_size, **changes):
    """Questions a step, each with num_samples responses (2 or more for grpo, dr_grpo and rloo); `changes` are a `method` and what else is
    not as in the paper."""
    settings = dict(kind="reft", init_from=init_from, epochs=float(epochs), batch_size=batch_size, optim=optim)
    return settings | dict(ppo=dict(minibatch_size=minibatch_size)) | changes


def self_train(init_from, epochs, optim, *, batch_size, sample_from="", **changes):
    """Self-training from right responses: offline from those of the stage or directory sample_from, online (without) from its own."""
    mode = dict(mode="offline", sample_from=sample_from, num_samples=100) if sample_from else dict(mode="online")
    settings = dict(kind="self_train", init_from=init_from, epochs=float(epochs), batch_size=batch_size, optim=optim)
    return settings | mode | changes


def reranker(init_from, sample_from, *, epochs=3, lr=1e-6, batch_size=24, **changes):
    """The paper's: three epochs on 100 responses per training question, the rate linear to 0 after 10 % of warm-up."""
    return dict(
        kind="reranker",
        init_from=init_from,
        sample_from=sample_from,
        epochs=float(epochs),
        batch_size=batch_size,
        optim=optim(lr, schedule=dict(warmup=0.1, hold=0.1, final=0.0)),
        **changes,
    )


def evaluate(checkpoints, *, num_samples, num_questions, batch_size=200, rerankers=None):
    """`rerankers`: label -> the reranker stage that also chooses among that label's samples."""
    return dict(
        kind="evaluate",
        checkpoints=checkpoints,
        num_samples=num_samples,
        num_questions=num_questions,
        batch_size=batch_size,
        rerankers=rerankers or {},
    )


def ordered(tree):
    """A ConfigDict that keeps the order in which keys were given, all the way down (the default sorts them)."""
    out = ConfigDict(sort_keys=False)
    for key, value in tree.items():
        out[key] = ordered(value) if isinstance(value, dict) else value
    return out


def config(*, seed, model, data, stages, **rest):
    """The whole, locked. Stages run in the order in which they are given."""
    return ordered(dict(seed=seed, model=model, data=data) | dict(mesh=mesh(model)) | rest | dict(stages=stages)).lock()
