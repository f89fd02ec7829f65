"""Supervised fine-tuning alone, with the settings of the paper's scripts, and its evaluation (greedy, vote@k, pass@k).

python -m reft_jax.main --config=configs/sft.py:data=svamp,cot=program,model=tiny,train_file=F,test_file=F --workdir=runs/sft
`model`: a preset (trained from scratch) or a Hugging Face directory. `smoke`: all of it in about a minute on two cores.
"""

from configs import common


def get_config(arg=""):
    arg = common.parse_arg(arg, **ARGS)
    setting = settings(arg)
    return common.config(
        seed=arg.seed,
        model=common.model(arg.model),
        data=data(arg, setting),
        stages=dict(
            sft=sft_stage(arg, setting, "random" if setting.scratch else arg.model, setting.epochs, select="best"),
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

# Epochs of the full SFT run, of the warm-up (its early checkpoint) and of ReFT; the paper's figures, for pretrained models.
EPOCHS = {
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


def settings(arg):
    """The numbers that depend on the arguments. A preset is trained from scratch: higher rates and a longer warm-up than the
    paper's, which fine-tunes models that know language; a directory is fine-tuned with the paper's."""
    epochs, warmup, reft_epochs = common.one_of("data,cot", (arg.data, arg.cot), EPOCHS)
    scratch = arg.model in common.PRESETS
    if scratch:
        warmup, reft_epochs = 10, 20
    out = dict(
        scratch=scratch,
        epochs=epochs,
        warmup=warmup,
        reft_epochs=reft_epochs,
        sft_lr=1e-3 if scratch else 1e-5,
        reft_lr=1e-4 if scratch else 3e-7,
        sft_batch=48,
        reft_batch=64 if scratch else 32,
        dropout=0.1 if scratch else 0.0,
        weight_decay=0.1 if scratch else 0.0,
        eval_every=4.0 if scratch else 1.0,
        eval_rows=64,
        votes=16 if scratch else 100,
        num_sampled=200 if scratch else 0,
    )
    if arg.smoke:
        out |= dict(
            epochs=4,
            warmup=2,
            reft_epochs=2,
            sft_batch=16,
            reft_batch=16,
            eval_every=2.0,
            eval_rows=16,
            votes=4,
            num_sampled=16,
        )
    return common.ConfigDict(out)


def data(arg, setting):
    """The data fragment; the paper's lengths (prompt 300, 700 in all) for pretrained models, shorter from scratch."""
    if arg.data == "arithmetic":
        sizes = dict(num_train=64, dev_size=16, num_test=32) if arg.smoke else {}
        return common.arithmetic(arg.cot, seed=arg.seed, **sizes)
    sizes = dict(dev_size=16, num_train=64, num_test=32) if arg.smoke else dict(dev_size=200)
    if setting.scratch:
        sizes |= dict(max_prompt=256, max_response=128 if arg.smoke else 256)
    return common.files(arg.data, arg.cot, arg.train_file, arg.test_file, **sizes)


def sft_stage(arg, setting, init_from, epochs, **kwargs):
    """Linear to 0 after 10 % of warm-up over the full run's epochs, whether this stage runs all of them or the first few."""
    optim = common.optim(
        setting.sft_lr,
        warmup=0.1,
        hold=0.1,
        final=0.0,
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
