"""The base model that the demo starts from: one pass over 1,000,000 generated problems, a quarter of them wrong.

The corpus plays the web: six styles of solution, 25 % sloppy. `export` writes a Hugging Face directory; the one under
reft_jax/assets/arithmetic_base was made by

python -m reft_jax.main --config=configs/pretrain.py --workdir=runs/pretrain
"""

from reft_jax.configs import common


def get_config(arg=""):
    arg = common.parse_arg(arg, seed=0, num_train=1_000_000, smoke=False)
    sizes = dict(num_train=512, dev_size=32, num_test=32) if arg.smoke else dict(num_train=arg.num_train)
    rows = 32 if arg.smoke else 200
    optim = common.optim(1e-3, schedule=dict(warmup=0.01, hold=0.4, final=0.03), weight_decay=0.01, b2=0.98)
    return common.config(
        seed=arg.seed,
        model=common.model("demo"),
        data=common.arithmetic(annotations="corpus", seed=arg.seed, **sizes),
        stages=dict(
            pretrain=common.sft(
                "random",
                1,
                optim,
                batch_size=32,
                eval_every=0.2,
                eval_batch_size=rows,
                select="last",
                log_every=50,
                save_every=500,
            ),
            export=dict(kind="export", init_from="pretrain"),
            evaluate=common.evaluate(dict(pretrain="pretrain"), num_samples=4, num_questions=rows, batch_size=4 * rows),
        ),
    )
