"""The base model that the demo starts from: one pass over generated problems of 1 to 4 operations, a quarter of them wrong.

The corpus plays the web: six styles of solution, 25 % sloppy. `export` writes a Hugging Face directory; the one under
reft_jax/assets/arithmetic_base was made by

python -m reft_jax.main --config=configs/pretrain.py --workdir=runs/pretrain
"""

from configs import common


def get_config(arg=""):
    arg = common.parse_arg(arg, seed=0, num_train=240_000, smoke=False)
    num = 512 if arg.smoke else arg.num_train
    rate = common.optim(2e-3, warmup=0.02, hold=0.5, final=0.05, weight_decay=0.01, b2=0.98)
    return common.config(
        seed=arg.seed,
        model=common.model("demo"),
        data=common.arithmetic(
            annotations="corpus",
            seed=arg.seed,
            num_train=num,
            dev_size=32 if arg.smoke else 400,
            num_test=32 if arg.smoke else 1000,
        ),
        stages=dict(
            pretrain=common.sft(
                "random",
                1,
                rate,
                batch_size=32,
                eval_every=0.25,
                select="last",
                log_every=50,
                save_every=500,
                eval_batch_size=32 if arg.smoke else 200,
            ),
            export=dict(kind="export", init_from="pretrain"),
            evaluate=common.evaluate(
                dict(pretrain="pretrain"),
                num_samples=4,
                num_questions=32 if arg.smoke else 200,
                batch_size=32 if arg.smoke else 800,
            ),
        ),
    )
