"""Every cell of the tables of ReFT (arXiv 2401.08967): its settings and the published accuracy.

python -m reft_jax.main --config=configs/paper.py:row=main/codellama_7b/gsm8k/program/reft,train_file=F,test_file=F,model_dir=D --workdir=W

A row is TABLE/MODEL/DATA/COT/METHOD; `python -m reft_jax.tables ROOT --plan --table=main` prints the commands of a table in order.
`model_dir` is the model's Hugging Face directory; without it the weights are random and the config is for `reft_jax.compile`.
Alone, a row trains everything that it needs. With `runs=DIR` it begins with the warm-up and the finished models that the rows
before it left in DIR/ROW. `smoke`: all of its stages at toy size, on generated problems (and programs) unless train_file is given.

`variant` says whose word counts where the text and the authors' scripts (github.com/lqtrung1998/mwp_ReFT) disagree:
                                        paper (the default)     script
  the best checkpoint is chosen on      200 dev questions       the test set, as the authors did; nothing is held out
  partial reward (0.1)                  numeric answers         MathQA's letters too
  beta, MathQA-numeric N-CoT            0.05                    0.01
  warm-up epochs, CodeLLAMA on SVAMP    1                       2
  beginning of P-CoT programs           always in the prompt    in ReFT's prompts, not in SFT's evaluation
  top-k of samples (voting, re-ranker,  off                     50, the default of transformers
    offline self-training)
  batch of the re-ranker                48                      24
  Codegen-350M: PPO batch, value coef   256, 5                  128, 0.1
Lengths are the same in both: 1024 tokens in all where SFT or offline self-training is the method, else 300 for the prompt and 700 in all.
"""

import dataclasses
import difflib

from reft_jax.configs import common, sft

# What each preset's weights are called on the Hugging Face hub.
MODELS = dict(
    galactica_6_7b="facebook/galactica-6.7b",
    codellama_7b="codellama/CodeLlama-7b-hf",
    galactica_125m="facebook/galactica-125m",
    codegen_350m="Salesforce/codegen-350M-mono",
)
VARIANTS = ("paper", "script")
PROMPTS = dict(bos="off", line_end="prefix")  # whatever the model
ARGS = dict(
    row="",
    variant="paper",
    seed=42,
    train_file="",
    test_file="",
    model_dir="",
    runs="",
    smoke=False,
)


def get_config(arg=""):
    arg = common.parse_arg(arg, **ARGS)
    common.one_of("variant", arg.variant, dict.fromkeys(VARIANTS))
    row = find(job(arg.row, arg.variant))
    setting = settings(row, arg.variant, arg.smoke)
    model = model_of(row, arg)
    return common.ordered(
        dict(
            seed=arg.seed,
            model=model,
            data=data_of(row, arg, setting),
            mesh=mesh_of(model, arg.smoke),
            stages=stages_of(row, arg, setting, model.get("directory", "random")),
        )
    ).lock()


# ------------------------------------------------------------------ the published tables


@dataclasses.dataclass(frozen=True)
class Row:
    """A cell. `published`: its accuracy in %, what the paper says where that is no number, "" where it gives none. `unverified`: the
    figure comes from a secondary source, from memory: it is never shown without its mark."""

    table: str
    model: str
    data: str
    cot: str
    method: str
    published: float | str
    unverified: bool = False

    @property
    def name(self) -> str:
        return f"{self.table}/{self.model}/{self.data}/{self.cot}/{self.method}"


# table -> (what it is, the result that it shows)
TABLES = dict(
    main=("Greedy accuracy, version 3 of the paper (ACL 2024)", "accuracy"),
    v1=("Greedy accuracy, version 1 of the paper (January 2024)", "accuracy"),
    vote=("Majority vote of 100 samples; program: the README of the authors' code, nl: version 1", "maj@100"),
    rerank=(
        "The best of 100 samples by a re-ranker; program: the README of the authors' code, nl: version 1",
        "rerank@100",
    ),
    numeric=("MathQA with numeric answers, greedy, version 1", "accuracy"),
    small=("Small models, greedy; Galactica-125M: version 1", "accuracy"),
    ablation=(
        "What ReFT is made of, greedy, version 1; of warmup_K, K epochs of SFT before ReFT, it has curves alone",
        "accuracy",
    ),
)
TEST_SIZES = {"gsm8k": 1319, "svamp": 1000, "mathqa": 1605, "mathqa-numeric": 1605}
UNVERIFIED = "† from memory of a secondary source, not checked against the paper"
CELLS = [(data, cot) for data in ("gsm8k", "svamp", "mathqa") for cot in ("nl", "program")]
BOTH, PROGRAM = CELLS[:2], [cell for cell in CELLS if cell[1] == "program"]


def rows_of(table, cells, unverified=(), **models):
    """Rows of one table: models[model][method] holds the published figures, one for each of `cells`."""
    return [
        Row(table, model, data, cot, method, figure, method in unverified or model in unverified)
        for model, methods in models.items()
        for method, figures in methods.items()
        for (data, cot), figure in zip(cells, figures, strict=True)
    ]


ROWS = {
    row.name: row
    for row in (
        *rows_of(
            "main",
            CELLS,
            ("offline", "online"),
            galactica_6_7b=dict(
                sft=(42.68, 58.83, 54.50, 70.09, 58.07, 64.61),
                offline=(42.60, 60.72, 57.90, 72.30, 60.75, 67.04),
                online=(47.84, 62.93, 59.40, 74.59, 59.38, 61.24),
                reft=(48.14, 68.91, 61.40, 74.09, 58.13, 70.47),
            ),
            codellama_7b=dict(
                sft=(43.59, 63.68, 58.09, 75.40, 56.01, 64.79),
                offline=(45.10, 68.00, 60.20, 77.69, 59.81, 68.53),
                online=(44.66, 67.85, 58.60, 77.40, 56.95, 68.85),
                reft=(53.30, 75.28, 64.50, 79.19, 60.13, 71.83),
            ),
        ),
        *rows_of(
            "v1",
            CELLS,
            galactica_6_7b=dict(
                sft=(41.0, 57.1, 53.8, 69.3, 58.7, 64.8),
                offline=(45.0, 61.0, 56.5, 70.8, 60.7, 67.5),
                online=(45.7, 61.9, 58.5, 73.7, 59.7, 62.4),
                reft=(46.8, 68.4, 62.3, 73.9, 58.3, 70.4),
            ),
            codellama_7b=dict(
                sft=(44.0, 64.4, 59.6, 76.2, 56.5, 64.2),
                offline=(38.8, 65.0, 54.2, 72.5, 57.6, 62.8),
                online=(40.0, 64.3, 59.7, 75.4, 55.5, 68.2),
                reft=(53.5, 72.8, 60.0, 78.4, 57.9, 71.5),
            ),
        ),
        *rows_of(
            "vote",
            BOTH,
            galactica_6_7b=dict(sft=(50.8, 62.9), reft=(58.7, 71.9)),
            codellama_7b=dict(sft=(53.8, 68.0), reft=(65.1, 78.0)),
        ),
        *rows_of(
            "rerank",
            BOTH,
            galactica_6_7b=dict(sft=(59.5, 73.4), reft=(62.8, 76.4)),
            codellama_7b=dict(sft=(61.9, 77.0), reft=(65.7, 81.2)),
        ),
        *rows_of(
            "numeric",
            [("mathqa-numeric", "nl")],
            galactica_6_7b=dict(sft=(41.1,), reft=(44.9,)),
            codellama_7b=dict(sft=(36.3,), reft=(41.0,)),
        ),
        *rows_of(
            "small",
            PROGRAM,
            ("codegen_350m",),
            galactica_125m=dict(sft=(23.7, 35.6, 58.4), reft=(29.8, 39.4, 60.5)),
            codegen_350m=dict(sft=(20.4, 34.4, 56.4), reft=(28.4, 39.3, 59.1)),
        ),
        *rows_of(
            "ablation",
            [("gsm8k", "program")],
            codellama_7b=dict(
                reft=(72.7,),
                no_partial_reward=(70.9,),
                no_kl=("collapses",),
                separate_critic=(72.6,),
                **{f"warmup_{k}": ("",) for k in range(1, 6)},
            ),
        ),
    )
}


def find(name: str) -> Row:
    """The row of that name; ValueError with the nearest names."""
    if name not in ROWS:
        near = difflib.get_close_matches(name, ROWS, n=3, cutoff=0.0)
        raise ValueError(
            f"argument row: got {name!r}; a row is TABLE/MODEL/DATA/COT/METHOD. The nearest are {', '.join(near)}; "
            "`python -m reft_jax.tables ROOT` lists them all"
        )
    return ROWS[name]


# ------------------------------------------------------------------ rows that are made by the same run


def job(name: str, variant: str = "paper") -> str:
    """The row whose run makes this one: rows of the same settings share a workdir."""
    row = find(name)
    home = {"small": "small", "numeric": "numeric"}.get(row.table, "main")
    if row.table == "rerank":
        return name
    if row.table == "ablation" and row.method not in ("reft", f"warmup_{epochs_of(row, variant)[1]}"):
        return name
    method = "reft" if row.table == "ablation" else row.method
    return f"{home}/{row.model}/{row.data}/{row.cot}/{method}"


def needs(name: str, variant: str = "paper") -> list[str]:
    """The jobs that must have run before a job with `runs`."""
    row = find(name)
    if row.method in ("sft", "offline") and row.table != "rerank" or row.method.startswith("warmup_"):
        return []
    return [job(sibling(row, row.method if row.table == "rerank" else "sft"), variant)]


def sibling(row: Row, method: str) -> str:
    """The row of another method for the same model, data and CoT."""
    home = row.table if row.table in ("small", "numeric") else "main"
    return f"{home}/{row.model}/{row.data}/{row.cot}/{method}"


def files(name: str) -> tuple[str, str]:
    """What the authors call the training and the test file of a row."""
    row = find(name)
    return f"{row.data}_{dict(nl='nl', program='python_sdp')[row.cot]}.json", f"{row.data}_test_set.json"


# ------------------------------------------------------------------ settings (the paper's section 4.3 and appendix B, and the scripts)


def epochs_of(row: Row, variant: str) -> tuple[int, int, int]:
    """Epochs of the whole SFT run, of the warm-up (its early checkpoint), and of ReFT and online self-training."""
    if row.table == "small":
        return (100, 40, 700) if row.data == "mathqa" else (40, 10, 700)
    epochs, warmup, online = sft.PAPER[row.data, row.cot]
    if (row.model, row.data, variant) == ("codellama_7b", "svamp", "paper"):
        warmup = 1
    return epochs, warmup, online


def settings(row: Row, variant: str, smoke: bool):
    """The numbers of a row: those of configs/sft.py for a pretrained model, and what differs."""
    out = sft.settings(common.ConfigDict(dict(data=row.data, cot=row.cot, model=row.model, smoke=smoke)))
    script = variant == "script"
    more = dict(
        kl_coef=0.05 if row.cot == "nl" and not (script and row.data == "mathqa-numeric") else 0.01,
        value_coef=5.0,
        critic="shared",
        partial_reward=0.1,
        partial_on="all" if script else "numeric",
        append_prefix="rollouts" if script else "everywhere",
        top_k=50 if script else 0,
        select_on="test" if script else "dev",
        hold_out=not script,
        offline_epochs=20,
        reranker_epochs=3,
        reranker_batch=24 if script else 48,
        samples=100,
        vote=row.table in ("main", "rerank") and row.data == "gsm8k" and row.method in ("sft", "reft"),
    )
    if row.table == "small" and not smoke:
        more |= dict(sft_lr=2e-5, reft_lr=3e-6, reft_batch=256)
        if script and row.model == "codegen_350m":
            more |= dict(reft_batch=128, value_coef=0.1)
    more |= dict(
        no_partial_reward=dict(partial_reward=0.0),
        no_kl=dict(kl_coef=0.0),
        separate_critic=dict(critic="separate"),
    ).get(row.method, {})
    if smoke:
        more |= dict(offline_epochs=1, reranker_epochs=1, reranker_batch=16, samples=4)
    else:
        more |= dict(zip(("epochs", "warmup", "reft_epochs"), epochs_of(row, variant), strict=True))
    if row.method.startswith("warmup_"):
        more |= dict(warmup=1 if smoke else int(row.method.removeprefix("warmup_")))
    return common.ConfigDict(out.to_dict() | more)


def model_of(row: Row, arg):
    """The row's model in bfloat16, from model_dir or without weights; at toy size another one."""
    if arg.smoke and not arg.model_dir:
        return common.model("tiny" if arg.train_file else "arithmetic_base")
    model = common.model(row.model) | dict(compute_dtype="bfloat16")
    return model | dict(directory=arg.model_dir, arch=None) if arg.model_dir else model


def mesh_of(model, smoke):
    """A 7B model is split 8 ways, as on the authors' 8 GPUs: that divides all of the batches."""
    mesh = common.mesh(model)
    if smoke:
        return mesh | dict(data=-1, fsdp=1, tensor=1)
    return mesh | dict(fsdp=8) if common.is_large(model["name"]) else mesh


def data_of(row: Row, arg, setting):
    toy = arg.smoke and not arg.train_file
    name, cot = ("arithmetic", "program") if toy else (row.data, row.cot)
    about = dict(data=name, cot=cot, train_file=arg.train_file, test_file=arg.test_file, seed=0, smoke=arg.smoke)
    data = sft.data(common.ConfigDict(about), setting) | PROMPTS | dict(append_prefix=setting.append_prefix)
    if arg.smoke:
        return data
    if not setting.hold_out:
        data |= dict(dev_size=0)
    if row.method in ("sft", "offline") and row.table != "rerank":  # 300 + 724 = 1024
        data |= dict(max_response=724, response_buckets=(64, 128, 192, 400, 724))
    return data


# ------------------------------------------------------------------ stages


def stages_of(row: Row, arg, setting, base: str):
    """What the row trains, then its evaluation. With `runs`, what other rows have trained is read from there."""
    reranked = row.table == "rerank"
    method = row.method if row.method in ("sft", "offline", "online") else "reft"
    # self_train and reranker sample from a stage of their own config
    own_warmup = reranked or not needs(row.name, arg.variant) or not arg.runs
    warmup = "warmup" if own_warmup else f"{arg.runs}/{job(sibling(row, 'sft'), arg.variant)}/warmup"
    drawn = dict(sampling=dict(top_k=setting.top_k))
    chosen = dict(select_on=setting.select_on)
    check = dict(eval_every=setting.eval_every, eval_batch_size=setting.eval_rows)

    def make_sft():
        stage = sft.sft_stage(arg, setting, "warmup", setting.epochs, select="best", continue_run=True)
        return stage | chosen

    def make_offline():
        optim = common.optim(setting.sft_lr, schedule=dict(warmup=0.1, hold=0.1, final=0.0))
        sizes = dict(batch_size=setting.sft_batch, num_samples=setting.samples, sample_batch_size=setting.eval_rows)
        stage = common.self_train(base, setting.offline_epochs, optim, sample_from="warmup", **sizes, **check)
        return stage | drawn | chosen

    def make_online():
        optim, sizes = common.optim(setting.reft_lr), dict(batch_size=setting.reft_batch, num_samples=1)
        stage = common.self_train(
            warmup, setting.reft_epochs, optim, **sizes, **check, sample_batch_size=setting.reft_batch, save_every=10
        )
        return stage | chosen

    def make_reft():
        partial = dict(weight=setting.partial_reward, on=setting.partial_on)
        return common.reft(
            warmup,
            setting.reft_epochs,
            common.optim(setting.reft_lr),
            batch_size=setting.reft_batch,
            minibatch_size=setting.reft_batch,
            rewards=dict(right={}, partial=partial),
            **common.method(kl_coef=setting.kl_coef, coef=setting.value_coef, trunk=setting.critic),
            **check,
            **chosen,
        )

    def make_reranker(source):
        stage = common.reranker(
            source,
            "warmup",
            epochs=setting.reranker_epochs,
            lr=1e-6,
            batch_size=setting.reranker_batch,
            num_samples=setting.samples,
            sample_batch_size=setting.eval_rows,
        )
        return stage | drawn

    stages = {}
    if own_warmup:
        stages["warmup"] = sft.sft_stage(arg, setting, base, setting.warmup, select="last")
    source = method
    if reranked and arg.runs:
        source = f"{arg.runs}/{job(sibling(row, method), arg.variant)}/{method}"
    else:
        make = dict(sft=make_sft, offline=make_offline, online=make_online, reft=make_reft)
        stages[method] = make[method]()
    if reranked:
        stages["reranker"] = make_reranker(source)
    evaluation = common.evaluate(
        {method: source},
        num_samples=setting.samples if setting.vote else 0,
        num_questions=0,
        batch_size=setting.eval_rows,
        rerankers={method: "reranker"} if reranked else None,
    )
    return stages | dict(evaluate=evaluation | drawn)
