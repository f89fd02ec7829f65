"""The functions of a run, lowered at their largest shapes for the devices of a layout. Each stage says which are its own."""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax import models
from reft_jax.compile import measure
from reft_jax.config.settings import GREEDY
from reft_jax.data.packing import Packing
from reft_jax.errors import InputError
from reft_jax.losses import reads_reference, traced
from reft_jax.sampling.engine import Engine
from reft_jax.training import state as states
from reft_jax.training.update import make_update
from reft_jax.types import COLUMNS, Batch, Prompts


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
    """Everything that the config's stages would compile; of equal ones the one with the most beside it. InputError for a stage that does
    not say what that is."""
    at = Lowering(config, model)
    for name, stage in config.stages:
        if not hasattr(stage, "programs"):
            raise InputError(
                f"config.stages.{name}: a stage of kind {dict(config.kinds)[name]!r} does not say what it compiles (its Stage has no "
                "programs(name, at)), so nothing can be said of whether it fits; stages/ has examples"
            )
        stage.programs(name, at)
    return list(at.found.values())


class Lowering:
    """What a stage's `programs(name, at)` is given: shapes on the mesh, and `add` for each function."""

    def __init__(self, config, model):
        self.config, self.model, self.layout, self.arch = config, model, model.layout, model.arch
        self.tuned = dataclasses.replace(model, lora=config.model.lora, base=config.model.base)
        self.key = jax.eval_shape(lambda: jax.random.key(0))
        self.everything = self.parameters(self.tuned, models.shapes(self.tuned))
        lora, full = self.tuned.lora, config.model.base == "full"
        self.trained = models.only_adapters(self.everything) if lora else self.everything
        self.frozen = without_adapters(self.everything) if lora else {}
        self.reference = self.frozen if lora and full else self.everything
        self.ref_model = model if full else self.tuned
        self.length = config.data.max_prompt + config.data.max_response  # of a sequence, at most
        self.found: dict[str, Program] = {}  # by their text

    # ---- shapes

    def placed(self, tree, places):
        return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)

    def parameters(self, of, tree):
        return self.placed(tree, models.param_shardings(of, tree))

    def rows(self, shape, dtype):
        place = self.layout.sharding(("batch",) + (None,) * (len(shape) - 1), shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def asked(self, num: int) -> Prompts:
        shape = (num, self.config.data.max_prompt)
        return Prompts(self.rows(shape, jnp.int32), self.rows(shape, bool), self.rows((num,), jnp.int32))

    def answers(self, num: int, *dtypes) -> list:
        return [self.rows((num, self.config.data.max_response), dtype) for dtype in dtypes]

    def together(self, num: int) -> Packing | None:
        """Sequences that share rows, at worst as many as there are."""
        data = self.config.data
        if not data.pack:
            return None
        whole = (num, data.max_prompt + data.max_response)
        return Packing(*[self.rows(whole, jnp.int32)] * 3, place=self.rows((num, data.max_response), jnp.int32))

    def columns(self, num: int, *names: str) -> dict:
        """Columns of a batch of num rows."""
        data = self.config.data
        size = dict(B=num, P=data.max_prompt, R=data.max_response, T=self.length, S=self.length)
        return {n: self.rows(tuple(size[x] for x in COLUMNS[n].axes), COLUMNS[n].dtype) for n in names}

    def batch(self, num: int, *columns: str) -> Batch:
        return Batch(self.asked(num), *self.answers(num, jnp.int32, bool), self.columns(num, *columns))

    def state(self, stage, params):
        """A TrainState around parameters, with the stage's optimizer."""
        tx = stage.optim(1000)
        return self.placed(states.eval_state(tx, params), states.state_shardings(self.tuned, tx, params))

    def with_critic(self, critic) -> dict:
        """The trained parameters and what `losses.value.Critic` asks for."""
        both = jax.eval_shape(lambda p, key: models.with_critic(self.model, p, key, critic), self.trained, self.key)
        return self.placed(both, models.param_shardings(self.tuned, both))

    def forward(self, num: int, logits: int | None = None) -> float:
        """Operations of a forward of num sequences, with the logits of every response token (None) or of so many."""
        logits = num * self.config.data.max_response if logits is None else logits
        return forward_flops(self.arch, num * self.length, self.length / 2, logits=logits)

    # ---- functions

    def add(self, name: str, function, arguments: tuple, flops: float, resident: dict, given_twice=None):
        lowered = function.lower(*arguments)
        text, size = lowered.as_text(), measure.device_bytes
        if text not in self.found or size(self.found[text].resident) < size(resident):
            self.found[text] = Program(name, lowered, arguments, flops, resident, given_twice or {})

    def sampling(self, prefix: str, of, params, how, num_slots: int, num_samples: int, beside: dict):
        """What draws responses."""
        data = self.config.data
        engine = Engine(
            of,
            max_prompt=data.max_prompt,
            max_new=how.max_new or data.max_response,
            num_slots=num_slots,
            eos_ids=(0,),
            pad_id=0,
            num_samples=num_samples,
            sampling=dataclasses.replace(how, stop=()),
            layout=self.config.mesh.decode,
        )
        read = engine.prefill_rows * data.max_prompt
        flops = dict(
            relay=0.0,
            prefill=forward_flops(self.arch, read, data.max_prompt / 2, logits=engine.prefill_rows),
            admit=0.0,
            decode=forward_flops(self.arch, engine.sizes[-1], data.max_prompt + engine.max_new / 2),
        )
        for name, (function, arguments, held) in engine.programs(params).items():
            self.add(f"{prefix}/{name}", function, arguments, flops[name], dict(beside=beside, engine=held))

    def check(self, name: str, stage, beside: dict):
        """The greedy responses of a check."""
        greedy = getattr(stage, "sampling", GREEDY).greedy
        self.sampling(f"{name}/check", self.tuned, self.everything, greedy, stage.eval_batch_size, 1, beside)

    def draws(self, name: str, stage):
        """The responses of another stage's model that a stage learns from."""
        whole = self.parameters(self.model, models.shapes(self.model))
        self.sampling(
            f"{name}/drawn", self.model, whole, stage.sampling, stage.sample_batch_size, stage.num_samples, {}
        )

    def learns_texts(self, name: str, stage):
        """An update on given texts, and the checks between."""
        state, num = self.state(stage, self.trained), stage.batch_size
        self.check(name, stage, dict(opt_state=state.opt_state))
        self.update(f"{name}/sft_step", stage, "sft", state, self.batch(num), 3 * self.forward(num), {}, key=self.key)

    def update(
        self, name: str, stage, of: str, state, batch, flops, resident, *, key=None, num: int = 0, length: int = 0
    ):
        """`training.update` on `num` (0 = all) of the batch's rows; resident: what lies there beside the arguments."""
        losses, tx = stage.objective, stage.optim(1000)
        reference = (self.ref_model, self.reference) if reads_reference(losses) else None
        how = dict(name=of, length=length, reference=reference) | stage.how
        step = make_update(self.tuned, tx, state.params, losses, **how)
        rows = jax.ShapeDtypeStruct((num,), jnp.int32) if num else None
        packing = None if batch.prompts is None else self.together(num or len(batch.tokens))
        coefs = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.float32), traced(losses))
        given = self.frozen or None, reference and reference[1], coefs if any(coefs) else None
        if reference is not None:  # an argument, and there once
            resident = {key: node for key, node in resident.items() if key != "reference"}
        self.add(name, getattr(step, "func", step), (state, batch, rows, key, packing, *given), flops, resident)


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
