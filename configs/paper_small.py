"""All methods of the paper and their variants, small but real: every row of the table `arithmetic`, from the shipped base.

python -m reft_jax.main --config=configs/paper_small.py:cot=program,style=diverse,seed=0 --workdir=runs/arithmetic/program_diverse_0
bash launch/table.sh arithmetic runs/arithmetic     # all of them; `python -m reft_jax.tables runs/arithmetic` prints the table

One workdir holds all methods of one (cot, style, seed) as its stages: they share the warm-up, SFT's run, the base's figures, the
re-ranker, the process and what it compiled, and each is skipped when it is done. Questions, model, warm-up, SFT and PPO's settings
are those of configs/demo.py, but ReFT is a quarter as long. What is online learns from 5,120 own responses in 160 updates of 64
sequences: ReFT in 20 steps of 256 questions, the group advantages in 20 of 64 questions x 4, online self-training in 160 of 32 (and
their gold). The re-ranker begins as SFT's checkpoint, learns from the warm-up's samples, and is the same judge for every method.
"""

from reft_jax.configs import common

METHODS = dict(
    base="the pretrained base",
    warmup="SFT, 4 epochs: what the online methods begin with",
    sft="SFT, best of 20 epochs",
    offline="offline self-training",
    online="online self-training",
    reft="ReFT: PPO, critic on the policy's trunk",
    no_partial_reward="ReFT, wrong answers earn 0",
    no_kl="ReFT, beta = 0",
    separate_critic="ReFT, a critic of its own",
    grpo="GRPO, 4 samples a question",
    dr_grpo="Dr. GRPO, 4 samples a question",
    rloo="RLOO, 4 samples a question",
    reinforce_pp="REINFORCE++, 4 samples a question",
)
COTS, STYLES, SEEDS = ("program", "nl"), ("diverse", "canonical"), (0, 1, 2)
ARGS = dict(cot="program", style="diverse", seed=0, methods="", smoke=False)

# The variants of ReFT; a group's KL and mean over tokens are those of its own paper.
PPO = ("reft", "no_partial_reward", "no_kl", "separate_critic", *common.CRITIC_FREE)


# Sizes of a run and at toy size: questions to train on and responses that decode together; steps of the online methods, of so many
# responses, in minibatches and groups; epochs of SFT and of the warm-up; offline's; the re-ranker's; what is sampled in the end.
SIZES = dict(
    num_train=1000,
    rows=200,
    steps=20,
    questions=256,
    minibatch=64,
    group=4,
    batch=32,
    epochs=20,
    warmup_epochs=4,
    offline_epochs=3,
    offline_samples=16,
    offline_kept=4,
    rank_epochs=2,
    rank_samples=4,
    samples=8,
    num_sampled=250,
    checks=5,
    eval_every=2,
)
SMOKE = dict(
    num_train=64,
    rows=8,
    steps=2,
    questions=32,
    minibatch=16,
    group=2,
    batch=16,
    epochs=4,
    warmup_epochs=2,
    offline_epochs=1,
    offline_samples=4,
    offline_kept=4,
    rank_epochs=1,
    rank_samples=4,
    samples=2,
    num_sampled=16,
    checks=2,
    eval_every=1,
)


def get_config(arg=""):
    arg = common.parse_arg(arg, **ARGS)
    common.one_of("style", arg.style, dict.fromkeys(STYLES))
    base, sizes = "arithmetic_base", dict(num_train=SMOKE["num_train"], dev_size=32, num_test=32) if arg.smoke else {}
    return common.config(
        seed=arg.seed,
        model=common.model(base),
        data=common.arithmetic(arg.cot, arg.style, seed=arg.seed, **sizes),
        stages=stages_of(methods_of(arg), base, SMOKE if arg.smoke else SIZES, log_every=2 if arg.smoke else 10),
    )


def methods_of(arg):
    """The methods that the argument `methods` names, all by default."""
    chosen = arg.methods.split("+") if arg.methods else list(METHODS)
    for method in chosen:
        common.one_of("methods (joined by +)", method, METHODS)
    return chosen


def stages_of(chosen, base, sizes, *, log_every):
    """The stages of the `chosen` methods from a pretrained `base`; `sizes` has the keys of SIZES."""
    size = common.ConfigDict(sizes)
    num_train, rows, steps, questions = size.num_train, size.rows, size.steps, size.questions
    check = dict(eval_batch_size=rows)

    rate = common.optim(
        5e-4,
        schedule=dict(hold=size.warmup_epochs / size.epochs, final=0.0),
        schedule_epochs=float(size.epochs),
        weight_decay=0.1,
    )
    sft = dict(batch_size=size.batch, dropout=0.1, eval_every=size.eval_every, log_every=log_every, **check)
    falling = common.optim(3e-4, schedule=dict(final=0.1))

    def reft(method):
        in_group = method in common.CRITIC_FREE
        asked, k = (questions // size.group, size.group) if in_group else (questions, 1)
        critic = dict(coef=1.0, init="zeros") | (dict(trunk="separate") if method == "separate_critic" else {})
        how = common.method(method, kl_coef=0.0 if method == "no_kl" else 0.02, **critic)
        if method == "no_partial_reward":
            how |= dict(rewards=dict(right={}, partial=dict(weight=0.0)))
        return common.reft(
            "warmup",
            steps * asked / num_train,
            falling,
            batch_size=asked,
            num_samples=k,
            minibatch_size=size.minibatch,
            eval_every=steps * asked / num_train / size.checks,
            save_every=steps,
            **how,
            **check,
        )

    stages = dict(
        warmup=common.sft(base, size.warmup_epochs, rate, select="last", **sft),
        sft=common.sft("warmup", size.epochs, rate, continue_run=True, **sft),
    )
    if "offline" in chosen:
        stages["offline"] = common.self_train(
            base,
            size.offline_epochs,
            common.optim(5e-4, schedule=dict(hold=0.2, final=0.0), weight_decay=0.1),
            batch_size=size.batch,
            sample_from="warmup",
            num_samples=size.offline_samples,
            max_per_question=size.offline_kept,
            sample_batch_size=4 * rows,
            dropout=0.1,
            eval_every=0.5,
            **check,
        )
    if "online" in chosen:
        num = questions * steps / num_train
        stages["online"] = common.self_train(
            "warmup",
            num,
            falling,
            batch_size=size.minibatch // 2,
            num_samples=1,
            eval_every=num / size.checks,
            **check,
        )
    stages |= {method: reft(method) for method in PPO if method in chosen}
    stages["reranker"] = common.reranker(
        "sft",
        "warmup",
        epochs=size.rank_epochs,
        lr=3e-4,
        batch_size=2 * size.batch,
        num_samples=size.rank_samples,
        sample_batch_size=4 * rows,
    )
    stages["evaluate"] = common.evaluate(
        {method: base if method == "base" else method for method in METHODS if method in chosen},
        num_samples=size.samples,
        num_questions=size.num_sampled,
        batch_size=4 * rows,
        rerankers=dict.fromkeys((method for method in METHODS if method in chosen), "reranker"),
    )
    return stages
