"""A stage's state: made, and where its parts lie."""

import jax
import jax.numpy as jnp

from reft_jax import models
from reft_jax.types import TrainState


def state_shardings(model, tx, params) -> TrainState:
    """Shardings of a TrainState: the optimizer's moments lie where their parameters do (or beside, in the host's memory), scalars
    and what else is of no parameter's shape everywhere."""
    places, everywhere = models.param_shardings(model, params), model.layout.replicated
    host = model.layout.moments == "host"
    beside = jax.tree.map(lambda place: place.with_memory_kind("pinned_host"), places) if host else places
    opt_places = moment_places(jax.eval_shape(tx.init, params), params, beside, everywhere)
    return TrainState(everywhere, places, opt_places)


def moment_places(opt_state, params, places, other):
    """Where an optimizer's state lies, a tree like `opt_state`: a leaf that has a parameter's path (at its end) and shape lies where
    `places` has the parameter; what has another shape (Adafactor's rows and columns, counts) is `other`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    known = {path: (leaf.shape, place) for (path, leaf), place in zip(leaves, jax.tree.leaves(places), strict=True)}

    def place(path, leaf):
        for i in range(len(path)):
            if path[i:] in known:
                shape, there = known[path[i:]]
                return there if shape == leaf.shape else other
        return other

    return jax.tree_util.tree_map_with_path(place, opt_state)


def eval_state(tx, params) -> TrainState:
    """The shapes of `init_state`'s."""
    return jax.eval_shape(lambda params: TrainState(jnp.zeros((), jnp.int32), params, tx.init(params)), params)


def init_state(model, tx, params) -> TrainState:
    """A fresh TrainState around params (copied: states are donated, and a caller may keep the params as reference)."""

    def make(params):
        return TrainState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), tx.init(params))

    return jax.jit(make, out_shardings=state_shardings(model, tx, params))(params)
