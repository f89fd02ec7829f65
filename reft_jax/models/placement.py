"""Where the parameters of a model, and of heads and critics beside it, lie on the mesh."""

from reft_jax.models import decoder
from reft_jax.models.classifier import classifier_axes
from reft_jax.models.heads import value_axes


def param_axes(model, params) -> dict:
    """Logical axis names of a parameter tree: the model's, or a part of it, and of a value head, a critic or a classifier."""
    names = decoder.axes(model)
    if "value_head" in params:
        names = names | {"value_head": value_axes("bias" in params["value_head"])}
    if "critic" in params:
        names = names | {"critic": param_axes(model, params["critic"])}
    if "classifier" in params:
        names = names | {"classifier": classifier_axes()}

    def like(names, tree):
        return {key: like(names[key], node) if isinstance(node, dict) else names[key] for key, node in tree.items()}

    return like(names, params)


def param_shardings(model, params):
    return model.layout.tree(params, param_axes(model, params))
