"""ReFT on a data set: warm-up, SFT (the same run, to its end), ReFT from the warm-up, and the evaluation of all three.

python -m reft_jax.main --config=configs/reft.py:data=svamp,cot=program,model=tiny,train_file=F,test_file=F --workdir=runs/svamp
data: svamp, gsm8k, mathqa, mathqa-numeric (files in the ReFT authors' JSON form, or GSM8K's JSONL) or arithmetic (generated);
cot: program or nl; model: a preset (from scratch) or a Hugging Face directory. `smoke`: all of it at toy size.
"""

from configs import common, sft


def get_config(arg=""):
    arg = common.parse_arg(arg, **sft.ARGS)
    setting = sft.settings(arg)
    init_from = "random" if arg.model in common.PRESETS else arg.model
    # beta: 0.01 for programs, 0.05 for natural language (0.01 on MathQA-numeric, as the authors' scripts have it)
    kl_coef = 0.05 if arg.cot == "nl" and arg.data != "mathqa-numeric" else 0.01
    ppo = common.ppo(kl_coef=kl_coef, minibatch_size=setting.reft_batch)
    return common.config(
        seed=arg.seed,
        model=common.model(arg.model),
        data=sft.data(arg, setting),
        stages=dict(
            warmup=sft.sft_stage(arg, setting, init_from, setting.warmup, select="last"),
            sft=sft.sft_stage(arg, setting, "warmup", setting.epochs, select="best", continue_run=True),
            reft=common.reft(
                "warmup",
                setting.reft_epochs,
                common.optim(setting.reft_lr),
                ppo,
                batch_size=setting.reft_batch,
                eval_every=setting.eval_every,
                eval_batch_size=setting.eval_rows,
            ),
            evaluate=common.evaluate(
                dict(warmup="warmup", sft="sft", reft="reft"),
                num_samples=setting.votes,
                num_questions=setting.num_sampled,
                batch_size=setting.eval_rows,
            ),
        ),
    )
