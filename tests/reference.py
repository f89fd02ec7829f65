"""Oracles: float64 NumPy, element by element, written from the papers' equations and from nothing else.

Rows are lists of real tokens only: each function first throws away what the mask excludes, so padding cannot matter here.
"""

import math

import numpy as np


def rows_of(mask):
    """Per row, the positions that are real."""
    return [[t for t in range(len(row)) if row[t]] for row in np.asarray(mask)]


# ------------------------------------------------------------------ losses


def token_rewards(score, logp, ref_logp, mask, *, kl_coef):
    """r_t = score [t is last] - kl_coef (logp_t - ref_logp_t)."""
    out = np.zeros(np.shape(mask))
    for b, real in enumerate(rows_of(mask)):
        for t in real:
            out[b, t] = -kl_coef * (float(logp[b][t]) - float(ref_logp[b][t]))
        if real:
            out[b, real[-1]] += float(score[b])
    return out


def gae(rewards, values, mask, *, gamma, lam):
    """A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t, V after the end 0; returns A + V."""
    adv, returns = np.zeros(np.shape(mask)), np.zeros(np.shape(mask))
    for b, real in enumerate(rows_of(mask)):
        v = [float(values[b][t]) for t in real] + [0.0]
        deltas = [float(rewards[b][t]) + gamma * v[i + 1] - v[i] for i, t in enumerate(real)]
        for i, t in enumerate(real):
            adv[b, t] = sum((gamma * lam) ** j * delta for j, delta in enumerate(deltas[i:]))
            returns[b, t] = adv[b, t] + v[i]
    return adv, returns


def whiten(x, mask):
    """(x - mean) / sqrt(biased variance + 1e-8) over all real entries."""
    entries = [float(x[b][t]) for b, real in enumerate(rows_of(mask)) for t in real]
    out = np.zeros(np.shape(mask))
    if entries:
        mean = sum(entries) / len(entries)
        variance = sum((e - mean) ** 2 for e in entries) / len(entries)
        for b, real in enumerate(rows_of(mask)):
            for t in real:
                out[b, t] = (float(x[b][t]) - mean) / math.sqrt(variance + 1e-8)
    return out


def reduce(x, mask, how):
    """ "token": the mean over all real tokens. "sequence": each response's mean, then the mean over responses that have tokens."""
    rows = [[float(x[b][t]) for t in real] for b, real in enumerate(rows_of(mask)) if real]
    if not rows:
        return 0.0
    if how == "token":
        return sum(map(sum, rows)) / sum(map(len, rows))
    return sum(sum(row) / len(row) for row in rows) / len(rows)


def sft_loss(logp, mask, *, reduce):
    return globals()["reduce"](-np.asarray(logp, np.float64), mask, reduce)


def ppo_loss(logp, values, batch, *, clip, value_clip, value_coef, reduce):
    """(total, policy, value, clip fraction) of the clipped surrogate and the clipped squared error, token by token."""
    shape = np.shape(batch.mask)
    policy, value, outside = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for b, real in enumerate(rows_of(batch.mask)):
        for t in real:
            ratio = math.exp(float(logp[b][t]) - float(batch.old_logp[b][t]))
            advantage = float(batch.adv[b][t])
            policy[b, t] = -min(advantage * ratio, advantage * min(max(ratio, 1 - clip), 1 + clip))
            policy[b, t] *= 1.0 if batch.weights is None else float(batch.weights[b][t])
            new, old, target = float(values[b][t]), float(batch.old_values[b][t]), float(batch.returns[b][t])
            near = old + min(max(new - old, -value_clip), value_clip)
            value[b, t] = 0.5 * max((new - target) ** 2, (near - target) ** 2)
            outside[b, t] = float(abs(ratio - 1) > clip)
    parts = [globals()["reduce"](x, batch.mask, reduce) for x in (policy, value, outside)]
    return parts[0] + value_coef * parts[1], *parts


def slope(function, x, mask, step=1e-6):
    """d function / d x by central differences, float64, at the real entries (0 elsewhere)."""
    x = np.where(mask, np.asarray(x, np.float64), 0.0)
    out = np.zeros(x.shape)
    for b, real in enumerate(rows_of(mask)):
        for t in real:
            up, down = x.copy(), x.copy()
            up[b, t] += step
            down[b, t] -= step
            out[b, t] = (function(up) - function(down)) / (2 * step)
    return out


# ------------------------------------------------------------------ the decoder


def llama_logits(arch, params, tokens, *, positions=None, seen=None, attention=None):
    """[T, V] of one unpadded sequence: Llama (arXiv 2302.13971) with grouped queries, one head and one position at a time.

    positions: where the tokens stand (None = 0, 1, ...). seen bool[T, T]: which earlier ones each sees (None = all). attention: a list that
    gets of each layer, token and head the weights on the tokens up to it."""
    positions = range(len(tokens)) if positions is None else positions
    p = {name: value for name, value in params.items()}
    embed = np.asarray(p["embed"]["kernel"], np.float64)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2) + arch.norm_eps) * np.asarray(scale, np.float64)

    def turn(x, position):
        half = arch.head_dim // 2
        out = np.empty(arch.head_dim)
        for i in range(half):
            angle = position * arch.rope_theta ** (-2 * i / arch.head_dim)
            out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
        return out

    x = [embed[token] for token in tokens]
    for i in range(arch.num_layers):
        block = {part: {k: v for k, v in p["blocks"][part].items()} for part in p["blocks"]}

        def kernel(part, name, i=i, block=block):
            return np.asarray(block[part][name]["kernel"][i], np.float64)

        normed = [norm(h, block["attention_norm"]["scale"][i]) for h in x]
        keys = [
            [turn(h @ kernel("attention", "k")[:, g], positions[t]) for g in range(arch.num_kv_heads)]
            for t, h in enumerate(normed)
        ]
        values = [[h @ kernel("attention", "v")[:, g] for g in range(arch.num_kv_heads)] for h in normed]
        attended = []
        for t, h in enumerate(normed):
            total = np.zeros(arch.dim)
            for head in range(arch.num_heads):
                group = head // (arch.num_heads // arch.num_kv_heads)
                query = turn(h @ kernel("attention", "q")[:, head], positions[t])
                scores = [query @ keys[s][group] / math.sqrt(arch.head_dim) for s in range(t + 1)]
                weights = np.exp(np.array(scores) - max(scores))
                if seen is not None:
                    weights = weights * seen[t, : t + 1]
                if attention is not None:
                    attention.append((i, t, head, weights / weights.sum()))
                mixed = sum(w * values[s][group] for s, w in enumerate(weights / weights.sum()))
                total += mixed @ kernel("attention", "o")[head]
            attended.append(x[t] + total)
        x = attended
        for t, h in enumerate(x):
            n = norm(h, block["mlp_norm"]["scale"][i])
            gate = n @ kernel("mlp", "gate")
            x[t] = h + (gate / (1 + np.exp(-gate)) * (n @ kernel("mlp", "up"))) @ kernel("mlp", "down")
    out = embed.T if arch.tie_embeddings else np.asarray(p["unembed"]["kernel"], np.float64)
    return np.array([norm(h, p["norm"]["scale"]) @ out for h in x])


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max() - math.log(np.exp(x - x.max()).sum())


# ------------------------------------------------------------------ sampling


def sampling_probs(
    logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, forbidden=(), seen=()
):
    """The distribution of one row: the logits of `seen` tokens are divided by the penalty (multiplied where negative), forbidden
    tokens go, divide by the temperature, keep the top_k, of these the fewest that hold top_p, of these those of at least min_p
    times the likeliest's probability, renormalise."""
    raw = np.array(logits, np.float64)
    for i in seen:
        raw[i] = raw[i] / repetition_penalty if raw[i] > 0 else raw[i] * repetition_penalty
    raw[list(forbidden)] = -1e9
    scaled = raw / temperature
    ranked = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    kept = ranked[:top_k] if top_k else ranked
    weights = {i: math.exp(scaled[i] - scaled[ranked[0]]) for i in kept}
    if top_p < 1:
        mass, nucleus = sum(weights.values()), []
        for i in kept:
            nucleus.append(i)
            if sum(weights[j] for j in nucleus) / mass >= top_p:
                break
        weights = {i: weights[i] for i in nucleus}
    weights = {i: weight for i, weight in weights.items() if weight >= min_p * max(weights.values())}
    out = np.zeros(len(scaled))
    for i, weight in weights.items():
        out[i] = weight / sum(weights.values())
    return out


# ------------------------------------------------------------------ optimizers


def orthogonal(x, steps=5):
    """Near U V^T of x = U S V^T [n, m]: Newton-Schulz steps of Muon's odd quintic."""
    x = np.asarray(x, np.float64)
    x = x / np.sqrt((x * x).sum())
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def muon_directions(grads, momentum):
    """The last of the directions that Muon takes for a matrix's gradients, before it is scaled."""
    mean = np.zeros_like(np.asarray(grads[0], np.float64))
    for t, grad in enumerate(np.asarray(grads, np.float64), start=1):
        mean = momentum * mean + (1 - momentum) * grad
        ahead = momentum * mean / (1 - momentum ** (t + 1)) + (1 - momentum) * grad / (1 - momentum**t)
    return orthogonal(ahead)


def adafactor_direction(grads, param, *, decay=0.8, clip=1.0, eps=1e-30):
    """The last of the directions that Adafactor takes for a matrix's gradients (its algorithm 4, without momentum)."""
    rows, columns = 0.0, 0.0
    for t, grad in enumerate(np.asarray(grads, np.float64), start=1):
        b2, square = 1 - t**-decay, grad**2 + eps
        rows = b2 * rows + (1 - b2) * square.sum(1)
        columns = b2 * columns + (1 - b2) * square.sum(0)
        update = grad / np.sqrt(np.outer(rows, columns) / rows.sum())
    update = update / max(1.0, np.sqrt((update**2).mean()) / clip)
    return max(1e-3, np.sqrt((np.asarray(param, np.float64) ** 2).mean())) * update


def share_of_lr(name, count, num, *, warmup=0.0, hold=0.0, final=None, decay=None, fall=None):
    """The rate over lr before update `count` of `num`, by the schedules' names."""
    rise = round(warmup * num)
    if count < rise:
        return count / rise
    if name == "constant":
        return 1.0
    start = dict(linear=round(hold * num), cosine=rise).get(name, num - round((decay or 0.0) * num))
    s = min(max((count - start) / max(num - start, 1), 0.0), 1.0)
    if name == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * s)) / 2
    if fall == "exponential":
        return final**s
    return 1 - (1 - final) * (math.sqrt(s) if fall == "sqrt" else s)
