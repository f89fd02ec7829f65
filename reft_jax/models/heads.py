"""What gives values: a head on the policy's trunk, in its parameter tree under "value_head", or a critic of its own, under "critic".

The decoder ignores both. A critic is a second trunk (all of the decoder that is trained, but for the unembedding) with its own
"value_head"; what it does not hold, the frozen base under adapters, it shares with the policy.
"""

import jax
import jax.numpy as jnp

from reft_jax.models.adapters import join


def value_axes(bias: bool) -> dict:
    """Logical axis names of the value head's parameters."""
    return {"kernel": ("embed",), **({"bias": ()} if bias else {})}


def init_value_head(model, key, *, how: str, bias: bool) -> dict:
    """A linear map D -> 1: kernel f32[D] ("zeros", or "normal" with the decoder's init_std), bias f32[] if asked for."""
    shape = (model.arch.dim,)
    kernel = jnp.zeros(shape) if how == "zeros" else model.arch.init_std * jax.random.normal(key, shape)
    return {"kernel": kernel, **({"bias": jnp.zeros(())} if bias else {})}


def with_critic(model, params, key, critic) -> dict:
    """The trained parameters of a policy with what `losses.value.Critic` asks for; a value head that they have goes on, else one begins.

    shared: the head on the policy's trunk; separate: a trunk of its own, which begins as a copy of the policy's (the arrays are
    the same until they are copied); None: neither.
    """
    policy = {name: node for name, node in params.items() if name not in ("value_head", "critic")}
    if critic is None:
        return policy
    begun = "value_head" in params
    head = params["value_head"] if begun else init_value_head(model, key, how=critic.init, bias=critic.bias)
    if critic.trunk == "shared":
        return policy | {"value_head": head}
    trunk = {name: node for name, node in policy.items() if name != "unembed"}
    return policy | {"critic": trunk | {"value_head": head}}


def critic_params(params) -> dict:
    """The decoder and value head of a critic of its own, as `forward` and `values` read them: nothing trained is the policy's."""
    return join({name: node for name, node in params.items() if name != "critic"}, params["critic"])


def values(params, hidden) -> jax.Array:
    """f32[B, T] of hidden [B, T, D], in float32."""
    head = params["value_head"]
    out = jnp.einsum("btd,d->bt", hidden.astype(jnp.float32), head["kernel"])
    return out + head["bias"] if "bias" in head else out
