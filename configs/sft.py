"""Supervised fine-tuning alone, with the settings of the paper's scripts, and its evaluation (greedy, vote@k, pass@k).

python -m reft_jax.main --config=configs/sft.py:data=svamp,cot=program,model=tiny,train_file=F,test_file=F --workdir=runs/sft
`model`: a preset (trained from scratch) or a Hugging Face directory or GGUF file. `smoke`: all of it at toy size.
"""

from reft_jax.configs import common


def get_config(arg=""):
    arg = common.parse_arg(arg, **ARGS)
    setting = settings(arg)
    return common.config(
        seed=arg.seed,
        model=common.model(arg.model),
        data=data(arg, setting),
        stages=dict(
            sft=sft_stage(
                arg, setting, "random" if arg.model in common.PRESETS else arg.model, setting.epochs, select="best"
            ),
            evaluate=common.evaluate(
                dict(sft="sft"),
                num_samples=setting.votes,
                num_questions=setting.num_sampled,
                batch_size=setting.eval_rows,
            ),
        ),
    )


# ------------------------------------------------------------------ shared with reft.py

ARGS = dict(data="svamp", cot="program", model="tiny", train_file="", test_file="", seed=42, smoke=False)

# Epochs of the full SFT run, of the warm-up (its early checkpoint) and of ReFT. The paper's, for pretrained models:
PAPER = {
    ("gsm8k", "program"): (40, 2, 300),
    ("gsm8k", "nl"): (40, 2, 300),
    ("svamp", "program"): (40, 2, 300),
    ("svamp", "nl"): (40, 2, 300),
    ("mathqa", "program"): (40, 2, 300),
    ("mathqa", "nl"): (40, 5, 300),
    ("mathqa-numeric", "program"): (40, 10, 300),
    ("mathqa-numeric", "nl"): (40, 10, 300),
    ("arithmetic", "program"): (20, 4, 15),
    ("arithmetic", "nl"): (20, 4, 15),
}
# A small preset is trained from nothing; these are enough to see every stage work in twenty minutes on two cores, not to be good
# at it. A published model's preset has the paper's settings: it is for `reft_jax.compile` and for timings, without its weights.
SCRATCH = {
    "gsm8k": (1, 0.5, 0.2),
    "svamp": (4, 2, 1),
    "mathqa": (1, 0.5, 0.2),
    "mathqa-numeric": (1, 0.5, 0.2),
    "arithmetic": (20, 4, 15),
}


def settings(arg):
    """The numbers that depend on the arguments: the paper's for a pretrained model, others for a small preset, from scratch."""
    common.one_of("data", arg.data, SCRATCH)
    common.one_of("cot", arg.cot, dict(program=None, nl=None))
    epochs = PAPER[arg.data, arg.cot]
    small = arg.model in common.PRESETS and not common.PRESETS[arg.model]["vocab_size"]
    out = dict(scratch=small, sft_batch=48)
    if out["scratch"]:
        epochs = SCRATCH[arg.data]
        out |= dict(
            sft_lr=1e-3,
            dropout=0.1,
            weight_decay=0.1,
            reft_lr=1e-4,
            reft_batch=64,
            eval_every=1.0,
            votes=16,
            num_sampled=100,
        )
    else:
        out |= dict(
            sft_lr=1e-5,
            dropout=0.0,
            weight_decay=0.0,
            reft_lr=3e-7,
            reft_batch=32,
            eval_every=1.0,
            votes=100,
            num_sampled=0,
        )
    out |= dict(zip(("epochs", "warmup", "reft_epochs"), epochs, strict=True), eval_rows=64)
    if arg.smoke:
        out |= dict(
            epochs=2,
            warmup=1,
            reft_epochs=1,
            sft_batch=16,
            reft_batch=16,
            eval_every=1.0,
            eval_rows=16,
            votes=4,
            num_sampled=16,
        )
    return common.ConfigDict(out)


def data(arg, setting):
    """The data fragment; the paper's lengths (prompt 300, 700 in all) for pretrained models, shorter ones from scratch."""
    if arg.data == "arithmetic":
        return common.arithmetic(
            arg.cot, seed=arg.seed, **(dict(num_train=64, dev_size=16, num_test=32) if arg.smoke else {})
        )
    sizes = dict(dev_size=16, num_train=64, num_test=32) if arg.smoke else dict(dev_size=200)
    if setting.scratch:
        sizes |= dict(max_prompt=256, max_response=256, prompt_buckets=(64, 128, 256), response_buckets=(128, 192, 256))
    if arg.smoke:
        sizes |= dict(max_prompt=256, max_response=160, prompt_buckets=(256,), response_buckets=(160,))
    return common.files(arg.data, arg.cot, arg.train_file, arg.test_file, **sizes)


def sft_stage(arg, setting, init_from, epochs, **kwargs):
    """Linear to 0 after 10 % of warm-up over the full run's epochs, whether this stage runs all of them or the first few."""
    optim = common.optim(
        setting.sft_lr,
        schedule=dict(warmup=0.1, hold=0.1, final=0.0),
        schedule_epochs=float(setting.epochs),
        weight_decay=setting.weight_decay,
    )
    return common.sft(
        init_from,
        epochs,
        optim,
        batch_size=setting.sft_batch,
        dropout=setting.dropout,
        eval_every=setting.eval_every,
        eval_batch_size=setting.eval_rows,
        **kwargs,
    )
