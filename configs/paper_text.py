"""All methods of the paper and their variants on real SVAMP, small: every row of the table `svamp_small`, from a base of your own.

python -m reft_jax.main --workdir=runs/svamp_small/program_svamp_0 \\
    --config=configs/paper_text.py:cot=program,seed=0,base=runs/words/export/hf,train_file=svamp_python_sdp.json,test_file=svamp_test_set.json
DATA=DIR MODELS=DIR bash launch/table.sh svamp_small runs/svamp_small   # all of them; MODELS/words is what configs/pretrain_text.py exported

Stages and methods are those of configs/paper_small.py, with other sizes. The dev split is cut from the training file (200 questions, the
same for all seeds), what is online learns from 1,280 own responses in 80 updates of 32 sequences, and programs have no docstring.
"""

from reft_jax.configs import common, paper_small

METHODS, COTS, SEEDS = paper_small.METHODS, paper_small.COTS, paper_small.SEEDS
STYLES = ("svamp",)  # the data set stands where the generated problems' annotations do
FILES = dict(program="svamp_python_sdp.json", nl="svamp_nl.json", test="svamp_test_set.json")
ARGS = dict(
    cot="program",
    style="svamp",
    seed=0,
    base="",
    train_file="",
    test_file="",
    methods="",
    steps=20,
    epochs=9,
    smoke=False,
)

# ReFT's steps and SFT's epochs are arguments; the warm-up is a third of the latter. One core draws and learns responses slowly, so
# these are few.
SIZES = paper_small.SIZES | dict(
    num_train=2800,
    questions=64,
    minibatch=32,
    offline_epochs=1,
    offline_samples=4,
    offline_kept=1,
    rank_epochs=1,
    rank_samples=2,
    samples=4,
    num_sampled=100,
    checks=2,
    eval_every=1,
)


def get_config(arg=""):
    arg = common.parse_arg(arg, **ARGS)
    common.one_of("style", arg.style, dict.fromkeys(STYLES))
    common.one_of("cot", arg.cot, dict.fromkeys(COTS))
    if arg.smoke and not arg.base:  # nothing need be there: the shipped base on its own problems
        return paper_small.get_config(f"cot={arg.cot},seed={arg.seed},methods={arg.methods},smoke")
    if not arg.base:
        raise ValueError(
            "argument base: got ''; it must be the Hugging Face directory that configs/pretrain_text.py exported"
        )
    sizes = SIZES | dict(steps=arg.steps, epochs=arg.epochs, warmup_epochs=max(arg.epochs // 3, 1))
    sizes = paper_small.SMOKE if arg.smoke else sizes
    records = dict(
        num_train=sizes["num_train"], **(dict(dev_size=16, num_test=32) if arg.smoke else dict(dev_size=200))
    )
    lengths = common.text_lengths(arg.cot, smoke=arg.smoke)
    data = common.files(arg.style, arg.cot, arg.train_file, arg.test_file, **records, **lengths)
    return common.config(
        seed=arg.seed,
        model=common.model(arg.base),
        data=data | dict(docstring=False, line_end="prefix", pack=not arg.smoke),
        stages=paper_small.stages_of(paper_small.methods_of(arg), arg.base, sizes, log_every=2 if arg.smoke else 10),
    )
