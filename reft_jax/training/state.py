"""A stage's state: made, and where its parts lie."""

import jax
import jax.numpy as jnp
import optax

from reft_jax import models
from reft_jax.types import TrainState


def state_shardings(model, tx, params) -> TrainState:
    """Shardings of a TrainState: the optimizer's moments lie where their parameters do (or beside, in the host's memory), scalars
    everywhere."""
    places, host = models.param_shardings(model, params), model.layout.moments == "host"
    opt_state = jax.eval_shape(tx.init, params)
    opt_places = optax.tree_utils.tree_map_params(
        tx,
        lambda _, place: place.with_memory_kind("pinned_host") if host else place,
        opt_state,
        places,
        transform_non_params=lambda _: model.layout.replicated,
    )
    return TrainState(model.layout.replicated, places, opt_places)


def eval_state(tx, params) -> TrainState:
    """The shapes of `init_state`'s."""
    return jax.eval_shape(lambda params: TrainState(jnp.zeros((), jnp.int32), params, tx.init(params)), params)


def init_state(model, tx, params) -> TrainState:
    """A fresh TrainState around params (copied: states are donated, and a caller may keep the params as reference)."""

    def make(params):
        return TrainState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), tx.init(params))

    return jax.jit(make, out_shardings=state_shardings(model, tx, params))(params)
