"""One PPO update, side by side: python benchmarks/update.py [--toy] [whole] [ours torch]

The load of `rollout.py`: a Llama of 20M random parameters, 64 prompts of 40 to 120 tokens with responses of random
tokens whose lengths are geometric (mean 130, at most 400), random scores. An update is: score (log-probabilities and
values of the policy, log-probabilities of the frozen reference), advantages, and two epochs of minibatches of 16 with
AdamW and clipped gradients.

- ours: `scoring.make_score`, `make_advantages` and `update.make_update`, called as `stages/reft.py` calls them: with remat=dots, and
  several sequences in a row (`data/packing.py`).
- torch: the same as the ReFT authors' code has it: transformers' model with a linear value head on the last hidden
  state, a second model as reference, logits of all positions, log_softmax and gather, clipped losses, AdamW. The same
  weights (but see `rollout.py` for large presets), rollout and minibatches, so `loss` is the same: the first
  minibatch's in the second update, so that the first update's steps are compared with it.

`whole` times a whole ReFT step of 256 prompts instead, 64 responses at a time: sampling (our engine, `generate`) + grading
(every response's tokens become a short program, which is run) + that update on what was sampled. Its parts are cut as the
stage cuts them: ours dispatches scoring before the programs are run, so grade_s holds some of it. The ratio's seconds are
per response token of each.

`--rows`, `--minibatch`, `--size=PRESET`, `--dtype=bfloat16` (parameters, gradients and AdamW's moments too) or `mixed` (these in
float32, products in bfloat16: torch's autocast),
`--prompts=FILE`, `--remat` (blocks are computed again in the backward pass, in both). Each runs in a process of its
own, twice; the second run counts. Prints one JSON line each: seconds, tokens (real ones, prompts and responses) a
second, compile_s (the first run less the second), peak memory in MB (1e6 bytes), real (the part of the padded rows that
is real tokens) and the share of the machine's speed that was put to use: `mfu` = tflop / seconds / peak, peak being
that of a large matrix product of the same library and dtype in the same process. tflop is counted by hand, for real
tokens alone. With N parameters in the blocks' matrices, a forward of p prompt and r response tokens is

    F = 2 N (p + r) + 2 D V r + 4 L H (p + r)(p + r + 1) / 2    (D dim, V vocabulary, L layers, H heads x head_dim)

(weights; logits of the response; causal attention's two products), a training pass 3 F (6 N a token), and an update 2 F
for policy and reference plus 3 F for each epoch, summed over the rows. What remat computes again, padding, and logits
of prompts are not counted.
"""

import functools
import json
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from benchmarks import common, rollout  # noqa: E402

ROWS, WHOLE_ROWS, MINIBATCH, TOY_ROWS, TOY_MINIBATCH = 64, 256, 16, 8, 4
NAMES = ("whole", "ours", "torch")

# Each side is a class with sample(load) -> (tokens, mask), score(load, tokens, mask) -> what update takes, and
# update(load, tokens, mask, scored, scores) -> the first minibatch's loss.


def orders(rows: int, ppo):
    """Rows of every minibatch of an update, the same for both sides."""
    rng = np.random.default_rng(2)
    order = np.concatenate([rng.permutation(rows) for _ in range(ppo.epochs)])
    return order.reshape(-1, ppo.minibatch_size).astype(np.int32)


class Ours:
    library = "jax"

    def __init__(self, given, stage, load, folder):
        import jax

        from reft_jax import models
        from reft_jax.config import settings
        from reft_jax.mesh import sharding
        from reft_jax.training import reinforce, scoring
        from reft_jax.training.state import init_state
        from reft_jax.training.update import make_update

        layout = sharding.make_layout(settings.Mesh(1, 1, 1), jax.devices()[:1])
        self.model, params = common.make_model(given, layout=layout, remat="block" if given.remat else "dots")
        tx = stage.optim(1000)
        self.reference, self.stage = params, stage
        params = models.with_critic(self.model, params, jax.random.key(1), stage.critic)
        self.state = init_state(self.model, tx, params)
        self.score_fn, self.advantages_fn = (
            scoring.make_score(self.model, most=stage.ppo.part_size),
            reinforce.make_advantages(stage.advantage),
        )
        self.ppo_step = make_update(self.model, tx, self.state.params, stage.objective, name="ppo", **stage.how)
        self.engine = rollout.make_engine(self.model, load)

    def sample(self, load):
        import jax

        out = self.engine(self.state.params, rollout.prompts_of(load), jax.random.key(1))
        return out.tokens, out.mask

    def score(self, load, tokens, mask):
        from reft_jax.data import packing

        questions = rollout.prompts_of(load)
        self.orders = orders(len(mask), self.stage.ppo)
        together, *self.packings = self.model.layout.batch(
            packing.pack(questions.mask, mask, [np.arange(len(mask))]) + packing.pack(questions.mask, mask, self.orders)
        )
        questions, tokens, mask = self.model.layout.batch((questions, tokens, mask))
        return questions, self.score_fn(self.state.params, self.reference, questions, tokens, mask, together)

    def update(self, load, tokens, mask, scored, scores):
        import jax

        from reft_jax.types import Rollout, Sample

        questions, (logp, ref_logp, values, entropy) = scored
        sample = Sample(*self.model.layout.batch((tokens, mask, np.zeros(mask.shape, np.float32))))
        scores = self.model.layout.batch(scores)
        batch, *_ = self.advantages_fn(Rollout(questions, sample, logp, ref_logp, values, entropy, scores))
        updates = []
        for rows, packing in zip(self.orders, self.packings, strict=True):
            self.state, update = self.ppo_step(self.state, batch, rows, packing=packing)
            updates.append(update)
        jax.block_until_ready(self.state)
        return float(jax.device_get(updates)[0]["ppo/loss"])


class Torch:
    library = "torch"

    def __init__(self, given, stage, load, folder):
        import jax
        import torch

        from reft_jax import models

        self.policy, self.reference = common.make_torch(given, folder), common.make_torch(given, folder)
        self.device, self.stage, optim = self.policy.device, stage, stage.optim
        self.autocast = functools.partial(common.autocast, given)
        model, critic = models.Model(common.make_arch(given)), stage.critic
        ours = models.init_value_head(model, jax.random.key(1), how=critic.init, bias=critic.bias)
        self.head = torch.nn.Linear(model.arch.dim, 1, device=self.device)
        with torch.no_grad():
            self.head.weight[0], self.head.bias[0] = (torch.tensor(np.array(ours[x])) for x in ("kernel", "bias"))
        if given.remat:
            self.policy.gradient_checkpointing_enable(dict(use_reentrant=False))
        self.parameters = [*self.policy.parameters(), *self.head.parameters()]
        adamw = dict(lr=optim.lr, betas=(optim.b1, optim.b2), eps=optim.eps, weight_decay=optim.weight_decay)
        self.optimizer = torch.optim.AdamW(self.parameters, **adamw, fused=self.device.type == "cuda")

    def sample(self, load):
        self.policy.eval()
        tokens = np.zeros((len(load.tokens), load.max_new), np.int64)
        for first in range(0, len(tokens), load.slots):
            part = slice(first, first + load.slots)
            with self.autocast():
                new = rollout.generate(self.policy, load, part)
            tokens[part, : new.shape[1]] = new
        return tokens, common.until_end(tokens, load.ends)

    def forward(self, model, ids, mask, first):
        """(log-probabilities, states) of the tokens from `first` on, both [B, R, ...]."""
        import torch

        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with self.autocast():
            hidden = model.base_model(ids, attention_mask=mask.long(), position_ids=positions, use_cache=False)[0]
            logits = model.get_output_embeddings()(hidden)[:, :-1].float()
        logp = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
        return logp[:, first - 1 :], hidden[:, first - 1 : -1]

    def value(self, hidden):
        return self.head(hidden.float())[..., 0]

    def score(self, load, tokens, mask):
        import torch

        ids, real = (
            torch.tensor(np.concatenate(pair, axis=1), device=self.device)
            for pair in ((load.tokens.astype(np.int64), tokens), (load.mask, mask))
        )
        first, parts = load.tokens.shape[1], []
        with torch.no_grad():
            for part in torch.arange(len(ids), device=self.device).split(self.stage.ppo.minibatch_size):
                logp, hidden = self.forward(self.policy, ids[part], real[part], first)
                ref_logp, _ = self.forward(self.reference, ids[part], real[part], first)
                parts.append((logp, ref_logp, self.value(hidden)))
        return ids, real, *(torch.cat(x) for x in zip(*parts, strict=True))

    def advantages(self, mask, logp, ref_logp, values, scores):
        import torch

        gae = self.stage.advantage
        last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        rewards = last * scores[:, None] - gae.kl.coef * (logp - ref_logp) * mask
        values = values * mask
        next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        deltas = (rewards + gae.gamma * next_values - values) * mask
        adv, so_far = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
        for t in reversed(range(deltas.shape[1])):
            so_far = deltas[:, t] + gae.gamma * gae.lam * so_far
            adv[:, t] = so_far
        adv = adv * mask
        count = mask.sum()
        mean = adv.sum() / count
        deviation = (((adv - mean) ** 2 * mask).sum() / count + 1e-8).sqrt()
        return (adv - mean) / deviation * mask, (adv + values) * mask

    def update(self, load, tokens, mask, scored, scores):
        import torch

        ids, real, logp, ref_logp, values = scored
        first = load.tokens.shape[1]
        mask, scores = real[:, first:], torch.tensor(scores, device=self.device)
        adv, returns = self.advantages(mask, logp, ref_logp, values, scores)
        batch = (ids, real, mask.float(), logp, values, adv, returns)
        self.policy.train()  # nothing is dropped; remat asks for it
        losses = []
        for rows in torch.tensor(orders(len(ids), self.stage.ppo), device=self.device).long():
            loss = self.loss(first, *(x[rows] for x in batch))
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.stage.optim.max_grad_norm)
            self.optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()[0]

    def loss(self, first, ids, real, mask, old_logp, old_values, adv, returns):
        import torch

        clip, critic = dict(self.stage.losses)["policy"].clip, self.stage.critic
        logp, hidden = self.forward(self.policy, ids, real, first)
        values = self.value(hidden)
        ratio = torch.exp((logp - old_logp) * mask)
        policy = torch.maximum(-adv * ratio, -adv * ratio.clamp(1 - clip, 1 + clip))
        clipped = old_values + (values - old_values).clamp(-critic.clip, critic.clip)
        value = 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
        lengths = mask.sum(1).clamp(min=1)
        return (((policy + critic.coef * value) * mask).sum(1) / lengths).mean()


SIDES = {"ours": Ours, "torch": Torch}


def made_up(load, vocab_size: int):
    """(tokens i32[B, R], mask, scores) of random responses; R: the longest's length, rounded up to a multiple of 64."""
    rng, rows = np.random.default_rng(1), len(load.tokens)
    lengths = np.minimum(rng.geometric(len(load.ends) / vocab_size, rows), load.max_new)
    width = bucket(lengths, load)
    mask = np.arange(width) < lengths[:, None]
    tokens = rng.integers(len(load.ends) + 1, vocab_size, mask.shape).astype(np.int32)
    ended = np.flatnonzero(lengths < load.max_new)
    tokens[ended, lengths[ended] - 1] = rng.choice(load.ends, len(ended))
    return tokens * mask, mask, rng.choice(np.float32([0, 0.1, 1]), rows)


def bucket(lengths, load) -> int:
    return min(-(-int(max(lengths)) // 64) * 64, load.max_new)


def grade(terms, tokens, mask):
    """f32[B] scores, by these reward terms, of the programs that the responses are turned into."""
    from reft_jax.data.records import Record
    from reft_jax.rewards import score
    from reft_jax.rewards.total import Responses, total

    texts = [f"def solution():\n    total = {row[real].sum()}\n    return total % 10\n"
             for row, real in zip(tokens, mask, strict=True)]  # fmt: skip
    num = len(texts)
    responses = Responses(
        records=[Record("made_up", "", "", "7", "program")] * num,
        texts=texts,
        tokens=[row[real].tolist() for row, real in zip(tokens, mask, strict=True)],
        grades=score.grade("gsm8k", "program", texts, ["7"] * num),
        step=1,
        task_kind=score.answer_kind("gsm8k"),
    )
    return total(terms, responses, {})[0]


def measure(name: str, given):
    whole = "whole" in given.names
    if common.missing(name, *dict(torch=("torch", "transformers")).get(name, ())):
        return
    default = TOY_ROWS if given.toy else WHOLE_ROWS if whole else ROWS
    rows, minibatch = given.rows or default, given.minibatch
    minibatch = minibatch or (TOY_MINIBATCH if given.toy else MINIBATCH)
    if rows % minibatch:
        raise SystemExit(f"--minibatch={minibatch} does not divide --rows={rows}")
    load = common.make_load(given, num=rows)
    stage = common.reft_stage(rows, minibatch, lr=3e-7, kl_coef=0.01)
    with tempfile.TemporaryDirectory() as folder:
        side = SIDES[name](given, stage, load, folder)
    work = functools.partial(whole_step if whole else update, side, load, common.make_arch(given).vocab_size)
    (mask, parts, loss), first, again = common.twice(work)
    peak_mb = common.peak_mb(side.library)
    lengths, prompts = mask.sum(1), load.prompt_lengths
    line = {"whole" if whole else "update": name, "size": given.size or ("toy" if given.toy else "20M")}
    line |= dict(dtype=given.dtype, rows=rows, minibatch=minibatch, seconds=round(again, 3))
    if whole:
        line |= {key: round(value, 3) for key, value in parts.items()} | dict(response_tokens=int(lengths.sum()))
    else:
        from reft_jax import models

        tokens, padded = int(lengths.sum() + prompts.sum()), mask.size + load.mask.size
        flops = common.update_flops(models.Model(common.make_arch(given)), prompts, lengths, stage.ppo.epochs)
        peak = common.peak_flops(side.library, common.dtypes(given)[1])
        line |= dict(tokens_per_s=round(tokens / again, 1), tokens=tokens, real=round(tokens / padded, 3))
        line |= dict(tflop=float(f"{flops / 1e12:.5g}"), tflop_per_s=float(f"{flops / again / 1e12:.4g}"))
        line |= dict(peak_tflop_per_s=float(f"{peak / 1e12:.4g}"), mfu=round(flops / again / peak, 4))
    line |= dict(compile_s=round(first - again, 2), peak_mb=peak_mb, loss=loss)
    print(json.dumps(line), flush=True)


def update(side, load, vocab_size):
    tokens, mask, scores = made_up(load, vocab_size)
    return mask, {}, side.update(load, tokens, mask, side.score(load, tokens, mask), scores)


def whole_step(side, load, vocab_size):
    clock = [time.perf_counter()]
    tokens, mask = side.sample(load)
    width = bucket(mask.sum(1), load)
    tokens, mask = (np.pad(x[:, :width], ((0, 0), (0, max(0, width - x.shape[1])))) for x in (tokens * mask, mask))
    clock.append(time.perf_counter())
    scored = side.score(load, tokens, mask)
    scores = grade(side.stage.rewards, tokens, mask)
    clock.append(time.perf_counter())
    loss = side.update(load, tokens, mask, scored, scores)
    clock.append(time.perf_counter())
    return mask, dict(zip(("sample_s", "grade_s", "update_s"), np.diff(clock).tolist(), strict=True)), loss


def compare(lines, whole: bool):
    """One line: how many times as long torch takes, and how far the losses are apart."""
    lines = {line["whole" if whole else "update"]: line for line in lines}
    if len(lines) < 2:
        return
    ours, theirs = lines["ours"], lines["torch"]
    if whole:
        parts = ("sample_s", "grade_s", "update_s", "seconds")
        per = {side["whole"]: [side[part] / side["response_tokens"] for part in parts] for side in (ours, theirs)}
        ratios = {f"{part}_ratio": round(b / a, 2) for part, a, b in zip(parts, per["ours"], per["torch"], strict=True)}
        print(json.dumps(dict(whole="torch / ours, per response token") | ratios))
    else:
        gap = abs(ours["loss"] - theirs["loss"])
        ratio = round(theirs["seconds"] / ours["seconds"], 2)
        print(json.dumps(dict(update="torch / ours", seconds_ratio=ratio, loss_gap=float(f"{gap:.2g}"))))


def main(*argv):
    options = common.parser(__doc__, NAMES)
    options.add_argument("--rows", type=int, metavar="N", help="responses of an update")
    options.add_argument("--minibatch", type=int, metavar="N", help="rows of one AdamW step")
    options.add_argument("--remat", action="store_true", help="compute blocks again in the backward pass")
    given = options.parse_args(argv)
    common.chosen(given.names, NAMES)
    whole = "whole" in given.names
    names = common.chosen([name for name in given.names if name != "whole"], SIDES)
    if given.here:
        return measure(names[0], given)
    lines = common.in_processes(__file__, names, given, *["whole"] * whole)
    compare(lines, whole)


if __name__ == "__main__":
    main(*sys.argv[1:])
