"""The functions of a run, lowered at their largest shapes for the devices of a layout."""

import dataclasses

from reft_jax.compile import measure
from reft_jax.config import settings as settings_lib

# ------------------------------------------------------------------ the functions of a run


@dataclasses.dataclass(frozen=True)
class Program:
    """One jitted function at its largest shapes."""

    name: str
    lowered: object  # jax.stages.Lowered
    arguments: tuple  # trees of shapes with shardings
    flops: float  # of the model, in one call, all devices together
    resident: dict  # what else lies on the devices meanwhile: a tree of shapes with shardings
    given_twice: dict  # the part of `arguments` that is there twice, and on the devices once


def programs(config, model) -> list[Program]:
    """Everything that the config's stages would compile; of equal ones the one with the most beside it."""
    import jax
    import jax.numpy as jnp

    from reft_jax import models
    from reft_jax.data.packing import Packing
    from reft_jax.sampling.engine import Engine
    from reft_jax.training import steps, steps_supervised
    from reft_jax.training.optim import make_optimizer
    from reft_jax.types import PPOBatch, Prompts, Rollout, Sample, SFTBatch

    data, layout, arch = config.data, model.layout, model.arch
    tuned = dataclasses.replace(model, lora=config.model.lora, base=config.model.base)

    def placed(tree, places):
        return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)

    def parameters(of, tree):
        return placed(tree, models.param_shardings(of, tree))

    def rows(shape, dtype):
        place = layout.sharding(("batch",) + (None,) * (len(shape) - 1), shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def asked(num):
        return Prompts(
            rows((num, data.max_prompt), jnp.int32), rows((num, data.max_prompt), bool), rows((num,), jnp.int32)
        )

    def answers(num, *dtypes):
        return [rows((num, data.max_response), dtype) for dtype in dtypes]

    def together(num):
        """Sequences that share rows, at worst as many as there are."""
        if not data.pack:
            return None
        whole = (num, data.max_prompt + data.max_response)
        return Packing(*[rows(whole, jnp.int32)] * 3, place=rows((num, data.max_response), jnp.int32))

    key = jax.eval_shape(lambda: jax.random.key(0))
    everything = parameters(tuned, models.shapes(tuned))
    trained = models.only_adapters(everything) if tuned.lora else everything
    frozen = without_adapters(everything) if tuned.lora else {}
    reference = everything if not tuned.lora or config.model.base != "full" else frozen
    ref_model = tuned if config.model.base != "full" else model
    length = data.max_prompt + data.max_response
    out: dict[str, Program] = {}  # by their text

    def add(name, function, arguments, flops, resident, given_twice=None):
        lowered = function.lower(*arguments)
        text = lowered.as_text()
        if text not in out or measure.device_bytes(out[text].resident) < measure.device_bytes(resident):
            out[text] = Program(name, lowered, arguments, flops, resident, given_twice or {})

    def add_sampling(prefix, of, params, how, num_slots, num_samples, beside):
        engine = Engine(
            of,
            max_prompt=data.max_prompt,
            max_new=how.max_new or data.max_response,
            num_slots=num_slots,
            eos_ids=(0,),
            pad_id=0,
            num_samples=num_samples,
            sampling=dataclasses.replace(how, stop=()),
            layout=config.mesh.decode,
        )
        read = engine.prefill_rows * data.max_prompt
        flops = dict(
            relay=0.0,
            prefill=forward_flops(arch, read, data.max_prompt / 2, logits=engine.prefill_rows),
            admit=0.0,
            decode=forward_flops(arch, engine.sizes[-1], data.max_prompt + engine.max_new / 2),
        )
        for name, (function, arguments, held) in engine.programs(params).items():
            add(f"{prefix}/{name}", function, arguments, flops[name], dict(beside=beside, engine=held))

    def with_critic(params, ppo):
        settings = dict(critic=ppo.critic, how=ppo.value_init, bias=ppo.value_bias)
        both = jax.eval_shape(lambda params, key: models.with_critic(model, params, key, **settings), params, key)
        return placed(both, models.param_shardings(tuned, both))

    for name, stage in config.stages:
        if stage.kind in ("sft", "self_train"):
            tx = make_optimizer(stage.optim, 1000)
            state = placed(steps.eval_state(tx, trained), steps.state_shardings(tuned, tx, trained))
            beside = dict(opt_state=state.opt_state)
            add_sampling(f"{name}/check", tuned, everything, settings_lib.GREEDY, stage.eval_batch_size, 1, beside)
        if stage.kind == "self_train" and stage.mode == "online":
            num = stage.batch_size * (stage.num_samples + 1)
            step = steps_supervised.make_self_train_step(tuned, tx, trained, stage)
            batch = steps_supervised.MixedBatch(asked(num), *answers(num, jnp.int32, bool), rows((num,), bool))
            flops = 3 * forward_flops(arch, num * length, length / 2, logits=num * data.max_response)
            add(f"{name}/self_train_step", step, (state, batch, key, frozen or None, together(num)), flops, {})
            slots, k = stage.sample_batch_size, stage.num_samples
            add_sampling(name, tuned, everything, stage.sampling, slots, k, beside)
        elif stage.kind in ("sft", "self_train"):
            settings = dict(dropout=stage.dropout, accumulate=stage.accumulate, reduce=stage.reduce)
            step = steps.make_sft_step(tuned, tx, trained, **settings)
            num = stage.batch_size
            batch = SFTBatch(asked(num), *answers(num, jnp.int32, bool))
            flops = 3 * forward_flops(arch, num * length, length / 2, logits=num * data.max_response)
            add(f"{name}/sft_step", step, (state, batch, key, frozen or None, together(num)), flops, {})
        if stage.kind == "reranker" or stage.kind == "self_train" and stage.mode == "offline":
            whole = parameters(model, models.shapes(model))
            add_sampling(f"{name}/drawn", model, whole, stage.sampling, stage.sample_batch_size, stage.num_samples, {})
        if stage.kind == "reranker":
            tx, num = make_optimizer(stage.optim, 1000), stage.batch_size
            head = parameters(model, dict(classifier=jax.eval_shape(lambda k: models.init_classifier(model, k), key)))
            state = placed(steps.eval_state(tx, trained | head), steps.state_shardings(tuned, tx, trained | head))
            step = steps_supervised.make_classifier_step(tuned, tx, trained | head, accumulate=stage.accumulate)
            read = rows((num, length), jnp.int32), rows((num, length), bool)
            batch = steps_supervised.ClassifierBatch(*read, rows((num,), bool))
            flops = forward_flops(arch, num * length, length / 2, logits=0)
            add(f"{name}/classifier_step", step, (state, batch, frozen or None), 3 * flops, {})
            score = models.make_classifier_score(model)
            add(f"{name}/classifier_score", score, (whole | head, *read), flops, {})
        if stage.kind == "reft":
            ppo, tx, num = stage.ppo, make_optimizer(stage.optim, 1000), stage.batch_size * stage.num_samples
            params = with_critic(trained, ppo)
            own = {name: node for name, node in params.items() if name not in trained}  # what the policy has not
            state = placed(steps.eval_state(tx, params), steps.state_shardings(tuned, tx, params))
            policy = models.join(frozen, params)
            held = dict(reference=models.only_adapters(reference) if tuned.lora else reference)  # a base is there once
            beside = held | own | dict(opt_state=state.opt_state)
            add_sampling(name, tuned, everything, stage.sampling, num, stage.num_samples, beside)
            add_sampling(f"{name}/check", tuned, everything, settings_lib.GREEDY, stage.eval_batch_size, 1, beside)
            score = steps.make_score(tuned, ref_model, most=ppo.part_size)
            tokens, mask = answers(num, jnp.int32, bool)

            def forwards(num, num_policies, ppo=ppo):
                """Operations of so many policies' forwards and of a separate critic's, over `num` sequences."""
                policy = forward_flops(arch, num * length, length / 2, logits=num * data.max_response)
                critic = forward_flops(arch, num * length, length / 2, logits=0) if ppo.critic == "separate" else 0.0
                return num_policies * policy + critic

            add(
                f"{name}/score",
                score,
                (policy, reference, asked(num), tokens, mask, together(num)),
                forwards(num, 2),
                dict(opt_state=state.opt_state),
                frozen,
            )
            [number] = answers(num, jnp.float32)
            values = None if ppo.critic == "none" else number
            sample = Sample(tokens, mask, number)
            told = number, number, values, number, rows((num,), jnp.float32)
            rollout = Rollout(asked(num), sample, *told, stage.num_samples)
            advantages = steps.make_advantages(ppo)
            add(f"{name}/advantages", advantages, (rollout,), 0.0, beside | everything)
            weights = number if ppo.correction == "importance" else None
            ref_logp = number if ppo.kl_in == "loss" else None
            batch = PPOBatch(asked(num), tokens, mask, number, values, number, values, weights, ref_logp)
            chosen = jax.ShapeDtypeStruct((ppo.minibatch_size,), jnp.int32)
            max_response = stage.sampling.max_new or data.max_response
            step = steps.make_ppo_step(tuned, tx, params, ppo, max_response=max_response)
            size = ppo.minibatch_size
            flops = 3 * forwards(size, 1)
            add(f"{name}/ppo_step", step, (state, batch, chosen, frozen or None, together(size)), flops, held)
        if stage.kind == "evaluate":
            params = parameters(model, models.shapes(model))
            add_sampling(f"{name}/greedy", model, params, settings_lib.GREEDY, stage.batch_size, 1, {})
            if stage.num_samples:
                k = stage.num_samples
                add_sampling(f"{name}/samples", model, params, stage.sampling, stage.batch_size, k, {})
    return list(out.values())


def without_adapters(tree: dict) -> dict:
    """The base's leaves of a model with adapters."""
    kept = {
        name: without_adapters(node) if isinstance(node, dict) else node
        for name, node in tree.items()
        if name not in ("lora_a", "lora_b")
    }
    return {name: node for name, node in kept.items() if not isinstance(node, dict) or node}


def forward_flops(arch, tokens: float, context: float, *, logits: float | None = None) -> float:
    """Floating-point operations of a forward of so many tokens that each see `context` others on average: two for every weight of
    a matrix, and 4 per head, dimension and token seen. `logits`: of how many tokens (None = all)."""
    q, kv = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    layer = arch.dim * (2 * q + 2 * kv) + arch.dim * arch.ffn_dim * (3 if arch.gated else 2)
    attention = 4 * q * context
    unembed = 2 * arch.dim * arch.vocab_size * (tokens if logits is None else logits)
    return arch.num_layers * tokens * (2 * layer + attention) + unembed
