"""A small base model for real word problems: one pass over generated stories (reft_jax/tasks/stories.py), exported for Hugging Face.

python -m reft_jax.main --config=configs/pretrain_text.py:questions_file=DATA/svamp_python_sdp.json --workdir=runs/words
python -m reft_jax.main --config=configs/paper_text.py:base=runs/words/export/hf,... --workdir=runs/svamp_small/program_svamp_0

The tokenizer is byte-level BPE (digits one by one) trained on what the model reads. Of `questions_file` only the questions are
read, as text: no CoT, no answer, none of the dev split; test questions nowhere. cot: program, nl or both (half and half); model: a
preset of configs/models.py that is trained from nothing. base: an exported directory of such a run, which goes on in its
own size, with its own tokenizer (`model` is not read then); another seed gives it other problems:

python -m reft_jax.main --workdir=runs/words_2 \\
    --config=configs/pretrain_text.py:base=runs/words/export/hf,seed=1,questions_file=DATA/svamp_python_sdp.json
"""

from reft_jax.configs import common

ARGS = dict(cot="both", seed=0, num_train=300_000, model="words", base="", questions_file="", smoke=False)


def get_config(arg=""):
    arg = common.parse_arg(arg, **ARGS)
    common.one_of(
        "model", arg.model, {name: None for name, preset in common.PRESETS.items() if not preset["vocab_size"]}
    )
    sizes = (
        dict(num_train=128, dev_size=16, num_test=16, vocab_size=800, smoke=True)
        if arg.smoke
        else dict(num_train=arg.num_train)
    )
    rows = 16 if arg.smoke else 200
    return common.config(
        seed=arg.seed,
        model=common.model(arg.base or ("tiny" if arg.smoke else arg.model)),
        data=common.stories(arg.cot, seed=arg.seed, questions_file=arg.questions_file, **sizes),
        stages=dict(
            pretrain=common.sft(
                arg.base or "random",
                1,
                common.optim(2e-3, schedule=dict(warmup=0.02, hold=0.5, final=0.03), weight_decay=0.05, b2=0.98),
                batch_size=32,
                eval_every=0.5 if arg.smoke else 0.1,
                eval_batch_size=rows,
                select="last",
                log_every=20,
                save_every=500,
            ),
            export=dict(kind="export", init_from="pretrain"),
            evaluate=common.evaluate(dict(pretrain="pretrain"), num_samples=0, num_questions=rows, batch_size=rows),
        ),
    )
