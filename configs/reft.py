"""ReFT on a data set: warm-up, SFT (the same run, to its end), ReFT from the warm-up, and the evaluation of all three.

python -m reft_jax.main --config=configs/reft.py:data=svamp,cot=program,model=tiny,train_file=F,test_file=F --workdir=runs/svamp
data: svamp, gsm8k, mathqa, mathqa-numeric (files in the ReFT authors' JSON form, or GSM8K's JSONL) or arithmetic (generated);
cot: program or nl; model: a preset (from scratch) or a Hugging Face directory or GGUF file. `smoke`: all of it at toy size.

`method` is what follows the warm-up, as the stage of that name: reft (PPO with a critic), grpo, dr_grpo, rloo, reinforce_pp (advantages
without one), online or offline (self-training). The online ones draw as many responses in as many steps as ReFT does: grpo,
dr_grpo and rloo draw GROUP for each question, so that they see fewer questions. All have ReFT's beta; GRPO's paper has 0.04, Dr. GRPO's 0.
"""

from reft_jax.configs import common, sft

GROUP, SMOKE_GROUP = 8, 4  # responses to a question that are compared
ARGS = sft.ARGS | dict(method="reft")


def get_config(arg=""):
    arg = common.parse_arg(arg, **ARGS)
    setting = sft.settings(arg)
    init_from = "random" if arg.model in common.PRESETS else arg.model
    return common.config(
        seed=arg.seed,
        model=common.model(arg.model),
        data=sft.data(arg, setting),
        stages={
            "warmup": sft.sft_stage(arg, setting, init_from, setting.warmup, select="last"),
            "sft": sft.sft_stage(arg, setting, "warmup", setting.epochs, select="best", continue_run=True),
            arg.method: stage_of(arg, setting, init_from),
            "evaluate": common.evaluate(
                {label: label for label in ("warmup", "sft", arg.method)},
                num_samples=setting.votes,
                num_questions=setting.num_sampled,
                batch_size=setting.eval_rows,
            ),
        },
    )


def stage_of(arg, setting, base):
    """The stage that `method` names."""
    check = dict(eval_every=setting.eval_every, eval_batch_size=setting.eval_rows)
    online, size = common.optim(setting.reft_lr), setting.reft_batch

    def make_offline():
        falling = dict(warmup=0.1, hold=0.1, final=0.0)
        optim = common.optim(setting.sft_lr, schedule=falling, weight_decay=setting.weight_decay)
        sizes = dict(batch_size=setting.sft_batch, num_samples=setting.votes, sample_batch_size=setting.eval_rows)
        # the paper's epochs; from scratch, SFT's
        epochs = setting.epochs if setting.scratch or arg.smoke else 20
        return common.self_train(base, epochs, optim, sample_from="warmup", dropout=setting.dropout, **sizes, **check)

    def make_online():
        sizes = dict(batch_size=size, num_samples=1, sample_batch_size=size, save_every=10)
        return common.self_train("warmup", setting.reft_epochs, online, **sizes, **check)

    def make_reft():
        k = (SMOKE_GROUP if arg.smoke else GROUP) if arg.method in ("grpo", "dr_grpo", "rloo") else 1
        # beta: 0.01 for programs, 0.05 for natural language (0.01 on MathQA-numeric, as the authors' scripts have it)
        kl_coef = 0.05 if arg.cot == "nl" and arg.data != "mathqa-numeric" else 0.01
        check["eval_every"] /= k  # of its fewer questions
        sizes = dict(batch_size=size // k, num_samples=k, minibatch_size=size)
        how = common.method(arg.method, kl_coef=kl_coef)
        return common.reft("warmup", setting.reft_epochs / k, online, **sizes, **how, **check)

    others = dict.fromkeys(("reft", *common.CRITIC_FREE), make_reft)
    return common.one_of("method", arg.method, others | dict(online=make_online, offline=make_offline))()
