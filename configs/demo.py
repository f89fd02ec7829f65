"""The paper's effect in minutes on two cores: SFT warm-up, SFT to its best epoch, ReFT, and the evaluation of all of them.

A shipped base model of 0.4M parameters (made by configs/pretrain.py) meets 1,000 questions that are harder than its
pretraining and half in unknown phrasings. The gold annotation shows one of many right solutions (annotations=diverse):
there ReFT wins. annotations=canonical is the control: with one way to write every solution, SFT does as well.

python -m reft_jax.main --config=configs/demo.py:seed=0,annotations=diverse --workdir=runs/demo
"""

from reft_jax.configs import common


def get_config(arg=""):
    arg = common.parse_arg(arg, annotations="diverse", cot="program", seed=0, smoke=False)
    smoke = arg.smoke
    sizes = dict(num_train=64, dev_size=32, num_test=32) if smoke else {}
    batch = 8 if smoke else 200
    base = "arithmetic_base"
    # Warm-up and SFT are one run of 20 epochs: constant rate for the first four (the warm-up), then linear to 0.
    # Dropout and weight decay are what the SFT baseline needs to be strong; PPO's forwards never drop.
    epochs, warmup_epochs = (4, 2) if smoke else (20, 4)
    falling = dict(hold=warmup_epochs / epochs, final=0.0)
    rate = common.optim(5e-4, schedule=falling, schedule_epochs=float(epochs), weight_decay=0.1)
    sft = dict(batch_size=16 if smoke else 32, dropout=0.1, eval_batch_size=batch, log_every=2 if smoke else 10)
    return common.config(
        seed=arg.seed,
        model=common.model(base),
        data=common.arithmetic(arg.cot, arg.annotations, seed=arg.seed, **sizes),
        stages=dict(
            warmup=common.sft(base, warmup_epochs, rate, select="last", eval_every=1, **sft),
            sft=common.sft("warmup", epochs, rate, continue_run=True, eval_every=1, **sft),
            reft=common.reft(
                "warmup",
                2 if smoke else 20,
                common.optim(3e-4, schedule=dict(final=0.1)),
                batch_size=32 if smoke else 256,
                minibatch_size=16 if smoke else 64,
                **common.method(kl_coef=0.02, coef=1.0, init="zeros"),
                eval_every=1 if smoke else 4,
                eval_batch_size=batch,
                save_every=1 if smoke else 10,
            ),
            evaluate=common.evaluate(
                dict(base=base, warmup="warmup", sft="sft", reft="reft"),
                num_samples=4 if smoke else 16,
                num_questions=16 if smoke else 500,
                batch_size=batch * 4,
            ),
        ),
    )
