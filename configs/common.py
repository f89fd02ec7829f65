"""Fragments that the experiments share. Every key is spelled out here or in the experiment; `reft_jax/config/settings.py` says what is legal."""

from ml_collections import ConfigDict

from configs.models import PRESETS, arch, spelled_out  # noqa: F401  (configs spell a new model with common.arch)


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
    """A preset of a new model by name, or a Hugging Face directory (or shipped model) whose config and tokenizer are used. A preset of
    a billion parameters computes in bfloat16 and keeps no activations inside its blocks."""
    known = name in PRESETS
    large = is_large(name)
    return dict(
        name=name,
        directory="" if known else name,
        arch=spelled_out(PRESETS[name]) if known else None,
        param_dtype="float32",
        compute_dtype="bfloat16" if large else "float32",
        remat="block" if large else "none",
        logits_chunk=128,
        vocab_multiple=1,
        attention="auto",
        lora=lora,
        base=base,
    )


def is_large(name: str) -> bool:
    """Whether it is a preset with a billion parameters in its blocks."""
    if name not in PRESETS:
        return False
    keys = spelled_out(PRESETS[name])
    heads = 2 * keys["head_dim"] * (keys["num_heads"] + keys["num_kv_heads"])
    return keys["num_layers"] * keys["dim"] * (heads + keys["ffn_dim"] * (3 if keys["gated"] else 2)) > 0.9e9


def lora(rank: int, *, alpha: float = 16.0, targets: str = r"attention\..*|mlp\..*"):
    """Low-rank adapters on the matrices whose names (attention.q .k .v .o, mlp.gate .up .down) the pattern matches."""
    return dict(rank=rank, alpha=alpha, targets=targets)


# ------------------------------------------------------------------ data


def arithmetic(cot="program", annotations="diverse", *, seed=0, num_train=1000, dev_size=400, num_test=1000):
    """The generated problems: 3 or 4 operations, half of the sentences in phrasings that the base model has never seen."""
    response = one_of("cot", cot, dict(program=36, nl=48))
    return dict(
        name="arithmetic",
        cot=cot,
        source="generated",
        train_file="",
        test_file="",
        seed=seed,
        num_train=num_train,
        num_test=num_test,
        dev_size=dev_size,
        annotations=annotations,
        docstring=False,
        append_prefix="everywhere",
        calculator_marks="strip",
        matcher="reft",
        tokenizer="word",
        vocab_size=300,
        max_prompt=50,
        max_response=response,
        prompt_buckets=(50,),
        response_buckets=(response,),
        pack=False,  # all problems are about as long
        max_overlap=0.01,
        tfds_dir="",
        manual_dir="",
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
    out = files(
        "stories", "program" if cot == "both" else cot, "", "", dev_size=dev_size, **text_lengths(cot, smoke=smoke)
    )
    changes = dict(
        source="generated", seed=seed, num_train=num_train, num_test=num_test, vocab_size=vocab_size, docstring=False
    )
    changes |= dict(pack=not smoke)  # one program to compile
    return out | changes | dict(annotations="corpus" if cot == "both" else "diverse", questions_file=questions_file)


def text_lengths(cot, *, smoke=False):
    """Limits for short word problems (SVAMP's) with a tokenizer of `stories`, in tokens; programs have no docstring. smoke: for a
    tokenizer that has seen little."""
    prompts, responses = ((96, 144), (160,) if cot == "program" else (160, 256)) if not smoke else ((160,), (160,))
    return dict(max_prompt=prompts[-1], max_response=responses[-1], prompt_buckets=prompts, response_buckets=responses)


def files(
    name,
    cot,
    train_file,
    test_file,
    *,
    dev_size,
    max_prompt=300,
    max_response=400,
    prompt_buckets=(64, 128, 192, 300),
    response_buckets=(64, 128, 192, 400),
    num_train=0,
    num_test=0,
):
    """A data set in the ReFT authors' JSON form, or GSM8K's JSONL. Lengths: the paper's 300 for the prompt, 700 in all."""
    return dict(
        name=name,
        cot=cot,
        source="files",
        train_file=train_file,
        test_file=test_file,
        seed=0,
        num_train=num_train,
        num_test=num_test,
        dev_size=dev_size,
        annotations="diverse",
        docstring=True,
        append_prefix="everywhere",
        calculator_marks="strip",
        matcher="reft",
        tokenizer="bpe",
        vocab_size=1000,
        max_prompt=max_prompt,
        max_response=max_response,
        prompt_buckets=prompt_buckets,
        response_buckets=response_buckets,
        pack=True,
        max_overlap=0.01,
        tfds_dir="",
        manual_dir="",
    )


# ------------------------------------------------------------------ the rest


def mesh(model):
    """All devices in a row of `data`; a large preset is split, 16 ways by fsdp (which divides the paper's batches) and the rest by tensor."""
    rules = dict(
        batch=("data", "fsdp"),
        embed=("fsdp",),
        vocab=("tensor",),
        heads=("tensor",),
        kv_heads=("tensor",),
        mlp=("tensor",),
    )
    sizes = dict(data=1, fsdp=16, tensor=-1) if is_large(model["name"]) else dict(data=-1, fsdp=1, tensor=1)
    return dict(**sizes, rules=rules, decode="replicated", moments="device")


def rewards():
    return dict(
        timeout_s=2.0, memory_mb=512, workers=0, max_gold_failures=0.02, max_verifier_failures=0.1, sandbox="auto"
    )


def logging():
    """Event files for TensorBoard, no W&B, no traces."""
    return dict(tensorboard=True, wandb="off", wandb_project="reft_jax", profile_steps=())


def optim(lr, *, warmup=0.0, hold=0.0, final=1.0, schedule_epochs=0.0, weight_decay=0.0, b2=0.999, max_grad_norm=1.0):
    """AdamW. The default schedule is constant; hold=h, final=0 falls linearly to 0 from the fraction h of the run on."""
    return dict(
        lr=lr,
        warmup=warmup,
        hold=hold,
        final=final,
        schedule_epochs=schedule_epochs,
        b1=0.9,
        b2=b2,
        eps=1e-8,
        weight_decay=weight_decay,
        mu_dtype="",
        max_grad_norm=max_grad_norm,
    )


def sampling(temperature=1.0):
    """The model's whole distribution. Lengths in tokens, max_new=0 = data.max_response; see config.Sampling."""
    return dict(
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        forbidden=(),
        stop=(),
        min_new=0,
        max_new=0,
    )


def sft(
    init_from,
    epochs,
    optim,
    *,
    batch_size,
    dropout=0.0,
    continue_run=False,
    eval_every=0.0,
    eval_batch_size=200,
    select="best",
    log_every=10,
    save_every=200,
):
    return dict(
        kind="sft",
        init_from=init_from,
        continue_run=continue_run,
        epochs=float(epochs),
        batch_size=batch_size,
        accumulate=1,
        dropout=dropout,
        reduce="token",
        optim=optim,
        eval_every=float(eval_every),
        eval_batch_size=eval_batch_size,
        select=select,
        select_on="dev",
        log_every=log_every,
        save_every=save_every,
    )


def ppo(
    *,
    kl_coef,
    minibatch_size,
    value_coef=5.0,
    value_init="normal",
    critic="shared",
    advantage="gae",
    clip_high=0.0,
    kl_in="reward",
    reduce="sequence",
):
    """The paper's PPO: clip 0.2, gamma 1, lambda 0.95, two epochs, whitening over the whole batch, value coefficient 5. Without a
    critic: critic="none" and another advantage; GRPO's paper has kl_in="loss", Dr. GRPO's reduce="constant", DAPO's clip_high=0.28
    and reduce="token"."""
    return dict(
        kl_coef=kl_coef,
        gamma=1.0,
        lam=0.95,
        clip=0.2,
        value_clip=0.2,
        value_coef=value_coef,
        epochs=2,
        minibatch_size=minibatch_size,
        accumulate=1,
        whiten=True,
        reduce=reduce,
        correction="none",
        importance_cap=2.0,
        value_init=value_init,
        value_bias=True,
        critic=critic,
        advantage=advantage,
        clip_high=clip_high,
        kl_in=kl_in,
    )


# What the methods without a critic change in `ppo`; kl_in and reduce are those of their papers.
CRITIC_FREE = dict(
    grpo=dict(critic="none", advantage="grpo", kl_in="loss"),
    dr_grpo=dict(critic="none", advantage="dr_grpo", kl_in="loss", reduce="constant"),
    rloo=dict(critic="none", advantage="rloo"),
    reinforce_pp=dict(critic="none", advantage="reinforce_pp"),
)


def reft(
    init_from,
    epochs,
    optim,
    ppo,
    *,
    batch_size,
    eval_every,
    eval_batch_size=200,
    log_samples=16,
    save_every=10,
    num_samples=1,
):
    """Questions a step x responses each (num_samples >= 2 for grpo, dr_grpo and rloo)."""
    return dict(
        kind="reft",
        init_from=init_from,
        epochs=float(epochs),
        batch_size=batch_size,
        num_samples=num_samples,
        sampling=sampling(),
        max_logp_gap=0.0,
        partial_reward=0.1,
        partial_on="numeric",
        ppo=ppo,
        optim=optim,
        eval_every=float(eval_every),
        eval_batch_size=eval_batch_size,
        select="best",
        select_on="dev",
        log_every=1,
        log_samples=log_samples,
        save_every=save_every,
    )


def self_train(
    init_from,
    epochs,
    optim,
    *,
    batch_size,
    sample_from="",
    num_samples=100,
    max_per_question=10,
    sample_batch_size=200,
    dropout=0.0,
    eval_every=0.0,
    eval_batch_size=200,
    select="best",
    log_every=10,
    log_samples=16,
    save_every=200,
):
    """Self-training from right responses: offline from those of the stage or directory sample_from, online (without) from its own."""
    return dict(
        kind="self_train",
        mode="offline" if sample_from else "online",
        init_from=init_from,
        sample_from=sample_from,
        num_samples=num_samples,
        max_per_question=max_per_question,
        sampling=sampling(),
        sample_batch_size=sample_batch_size,
        own_weight=0.5,
        gold_weight=0.5,
        epochs=float(epochs),
        batch_size=batch_size,
        accumulate=1,
        dropout=dropout,
        reduce="token",
        optim=optim,
        eval_every=float(eval_every),
        eval_batch_size=eval_batch_size,
        select=select,
        select_on="dev",
        log_every=log_every,
        log_samples=log_samples,
        save_every=save_every,
    )


def reranker(
    init_from,
    sample_from,
    *,
    epochs=3,
    lr=1e-6,
    batch_size=24,
    num_samples=100,
    balanced=False,
    sample_batch_size=200,
    log_every=10,
    save_every=200,
):
    """The paper's: three epochs on 100 responses per training question, the rate linear to 0 after 10 % of warm-up."""
    return dict(
        kind="reranker",
        init_from=init_from,
        sample_from=sample_from,
        num_samples=num_samples,
        balanced=balanced,
        sampling=sampling(),
        sample_batch_size=sample_batch_size,
        epochs=float(epochs),
        batch_size=batch_size,
        accumulate=1,
        optim=optim(lr, warmup=0.1, hold=0.1, final=0.0),
        log_every=log_every,
        save_every=save_every,
    )


def evaluate(checkpoints, *, num_samples, num_questions, batch_size=200, rerankers=None):
    """`rerankers`: label -> the reranker stage that also chooses among that label's samples."""
    return dict(
        kind="evaluate",
        checkpoints=checkpoints,
        num_samples=num_samples,
        num_questions=num_questions,
        sampling=sampling(),
        batch_size=batch_size,
        rerankers=rerankers or {},
    )


def ordered(tree):
    """A ConfigDict that keeps the order in which keys were given, all the way down (the default sorts them)."""
    out = ConfigDict(sort_keys=False)
    for key, value in tree.items():
        out[key] = ordered(value) if isinstance(value, dict) else value
    return out


def config(*, seed, model, data, stages):
    """The whole, locked. Stages run in the order in which they are given."""
    rest = dict(mesh=mesh(model), rewards=rewards(), logging=logging())
    return ordered(dict(seed=seed, model=model, data=data, **rest, stages=stages)).lock()
