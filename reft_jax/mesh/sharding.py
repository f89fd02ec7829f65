"""The mesh, and where each logical axis lies on it: the only file that knows PartitionSpecs.

Parameters, optimizer state, batches and activations carry logical axis names ("embed", "heads", "batch", ...);
`config.mesh.rules` maps a name to mesh axes ("data", "fsdp", "tensor"). A name without a rule is replicated; a dimension that the
axes do not divide is split over the last of them that do. One device is a mesh of 1 x 1 x 1 and takes the same path.
"""

import dataclasses
import math
import typing

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reft_jax.config import settings
from reft_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules that place things on it."""

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...]
    moments: str = "device"  # or host: whose memory the optimizer's moments lie in between updates

    def spec(self, names: typing.Sequence[str | None], shape: typing.Sequence[int]) -> PartitionSpec:
        rules, used, out = dict(self.rules), set(), []
        for name, size in zip(names, shape, strict=True):
            axes = tuple(axis for axis in rules.get(name, ()) if axis not in used)
            while size % math.prod(self.mesh.shape[axis] for axis in axes):
                axes = axes[1:]
            used |= set(axes)
            out.append(axes or None)
        return PartitionSpec(*out)

    def sharding(self, names, shape) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(names, shape))

    def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
        """Asks the compiler to lay an activation out by its logical axes (inside jit)."""
        return jax.lax.with_sharding_constraint(x, self.sharding(names, x.shape))

    def tree(self, shapes, names):
        """Shardings of a tree of arrays (or shapes) with a like tree of name tuples."""
        return jax.tree.map(lambda x, axes: self.sharding(axes, x.shape), shapes, names)

    def batch(self, tree):
        """Puts host arrays [B, ...], the same in every process, on the mesh, rows over the axes of "batch"."""

        def put(x):
            place = self.sharding(("batch",) + (None,) * (x.ndim - 1), x.shape)
            if place.is_fully_addressable:
                return jax.device_put(x, place)
            return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

        return jax.tree.map(put, tree)

    def for_decoding(self, how: str) -> "Layout":
        """The layout while responses are sampled, token by token; `how` is config.mesh.decode.

        replicated: weights are split over "tensor" alone, so that no token waits for fsdp's gathering; rows as before.
        tensor: weights are split over "fsdp" as well where they were over "tensor" (heads, mlp, vocab), rows over the rest.
        as_trained: no change.
        """
        if how == "as_trained":
            return self
        rules = []
        for name, axes in self.rules:
            if name == "batch":
                axes = tuple(axis for axis in axes if how == "replicated" or axis != "fsdp")
            elif how == "tensor" and "tensor" in axes:
                axes = ("fsdp", "tensor")
            else:
                axes = tuple(axis for axis in axes if axis == "tensor")
            rules.append((name, axes))
        return dataclasses.replace(self, rules=tuple(rules))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def parts(self, name: str) -> int:
        """How many ways a logical axis is split."""
        return math.prod(self.mesh.shape[axis] for axis in dict(self.rules).get(name, ()))


def device_bytes(tree, places) -> int:
    """Bytes of one device that a tree of shapes takes where `places` has it; what lies in the host's memory is not counted."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    return sum(
        math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, place in leaves
        if place.memory_kind != "pinned_host"
    )


def drop_leading(sharding):
    """The sharding of x[0], given that of x; None stays None."""
    return sharding and NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


def make_layout(mesh: settings.Mesh, devices=None) -> Layout:
    """The layout of a mesh config on the devices there are; InputError if the sizes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    sizes = [mesh.data, mesh.fsdp, mesh.tensor]
    if -1 in sizes:
        rest = -math.prod(sizes)
        sizes[sizes.index(-1)] = max(len(devices) // rest, 1)
    if math.prod(sizes) != len(devices):
        raise InputError(
            f"config.mesh: data={mesh.data}, fsdp={mesh.fsdp}, tensor={mesh.tensor} does not multiply to the {len(devices)} devices here; "
            f"set sizes whose product is {len(devices)}, or one of them to -1"
        )
    return Layout(
        Mesh(_arranged(sizes, devices), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3), mesh.rules, mesh.moments
    )


def _arranged(sizes: list[int], devices):
    """The devices as an array of those sizes, neighbours in it being neighbours in the network; several TPU slices lie along `data`,
    which alone needs the slower network between them."""
    slices = {getattr(device, "slice_index", 0) for device in devices} if devices[0].platform == "tpu" else {0}
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] % len(slices):
        raise InputError(f"config.mesh.data: got {sizes[0]}; the {len(slices)} slices here must divide it")
    inner = [sizes[0] // len(slices), *sizes[1:]]
    return mesh_utils.create_hybrid_device_mesh(inner, [len(slices), 1, 1], devices, allow_split_physical_axes=True)
