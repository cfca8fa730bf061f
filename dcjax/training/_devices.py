"""Where the work runs: the choice of devices, and the one place that maps members over them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dcjax._mesh import DEVICES
from dcjax._pytrees import reshape_lead
from dcjax.training._retrace_guard import traced_once

PyTree = Any
Device = Any  # a jax.Device: a name in a compiled module, which type checkers do not resolve


def physical_devices(devices: Sequence[Device]) -> int:
    """The number of physical devices: the host devices of one CPU (one process) count as one.

    Args:
      devices: the devices that a phase uses.

    Returns:
      What seconds are multiplied by to get device-seconds.

    >>> physical_devices(jax.devices("cpu"))
    1
    """
    cpus = {device.process_index for device in devices if device.platform == "cpu"}
    return len(cpus) + sum(device.platform != "cpu" for device in devices)


def choose_devices(parts: int, devices: Sequence[Device] | None = None) -> tuple[Device, ...]:
    """The devices that take equal shares of `parts`: as many as the largest divisor allows.

    Four sub-networks on three devices run on two, two on each; five on four devices run on one. A
    batch of 128 examples takes any power of two up to 128.

    The host devices of a CPU share its cores, and are used all the same: what is tested on them is
    the program that many devices run.
    """
    devices = tuple(jax.devices() if devices is None else devices)
    if parts < 1 or not devices:
        raise ValueError(f"expected at least one part and one device, got {parts} and {devices}")
    sizes = range(min(parts, len(devices)), 0, -1)
    return devices[: next(size for size in sizes if parts % size == 0)]


class Engine(NamedTuple):
    """How a backend is kept busy.

    * `members`: how a device runs its sub-networks: `"unrolled"`, one after another in one program;
      `"vmap"`, batched; `"map"`, in a compiled loop.
    * `whole_epochs`: whether an epoch is one call, a compiled loop over its steps.
    """

    members: Literal["unrolled", "vmap", "map"]
    whole_epochs: bool


def engine_for(platform: str) -> Engine:
    """The engine of a backend, by what `python -m experiments.benchmark --only engines` measures.

    On the CPU XLA's convolutions are several times slower under `vmap` or in the body of a loop;
    with `dcjax.native`'s the forms are closer, and this one is among the fastest. On
    accelerators `vmap` makes grouped convolutions, which are slow there, and a loop compiles one
    sub-network's program; on an H200 it takes what its members take one after another.

    >>> engine_for("cpu")
    Engine(members='unrolled', whole_epochs=False)
    """
    return Engine("unrolled", False) if platform == "cpu" else Engine("map", True)


def sharding(devices: Sequence[Device], *axes: str | None) -> NamedSharding:
    """Arrays over the devices: an axis named DEVICES is cut; without it each device has a copy."""
    return NamedSharding(Mesh(np.array(devices), (DEVICES,)), PartitionSpec(*axes))


def on_mesh(function: Callable[..., Any], devices: Sequence[Device]) -> Callable[..., Any]:
    """The function, traced with the devices as the mesh in context.

    So operations that XLA would not partition well can see that the batch is cut over it
    (`dcjax.native.conv_general_dilated`).
    """

    @functools.wraps(function)
    def within(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(sharding(devices).mesh.abstract_mesh):
            return function(*args)

    return within


class Members(NamedTuple):
    """How independent members are spread over devices.

    On the devices a leaf has the axes (devices, members on each, …).

    * `put`: from a plain pytree with leading axis `members` to that form; `get`: its inverse.
    * `map`: from a function of one member to the compiled function of all.
    """

    put: Callable[[PyTree], PyTree]
    get: Callable[[PyTree], PyTree]
    map: Callable[..., Any]


def spread_members(members: int, devices: Sequence[Device], form: str) -> Members:
    """Members over devices by `jax.pmap`, on each in the engine's form: the one place for it."""
    shape = (len(devices), members // len(devices))

    def put(tree: PyTree) -> PyTree:
        return jax.device_put(reshape_lead(tree, shape, axes=1), sharding(devices, DEVICES))

    def get(tree: PyTree) -> PyTree:
        return reshape_lead(jax.device_put(tree, devices[0]), (members,), axes=2)

    def over_devices(function: Callable[..., Any], in_axes: Any, **options: Any) -> Any:
        @functools.wraps(function)
        def on_device(*args: Any) -> Any:
            if form == "vmap":
                return jax.vmap(function, in_axes)(*args)

            # What is computed for one member stays apart from the others: fused with theirs, sums
            # could be taken in another order than on a device of its own.
            def member(j: Any) -> Any:
                return jax.lax.optimization_barrier(function(*_member(args, in_axes, j)))

            if form == "map":
                return jax.lax.map(member, jnp.arange(shape[1]))
            results = [member(j) for j in range(shape[1])]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

        mapped = traced_once(on_device)
        return jax.pmap(mapped, DEVICES, in_axes=in_axes, devices=devices, **options)

    return Members(put, get, over_devices)


def _member(args: Any, in_axes: Any, member: Any) -> Any:
    """The arguments of one of a device's members; what has the axis None is shared by all.

    Its own are kept apart from those of the others; what is shared needs no barrier.
    """

    def pick(axis: int | None, part: PyTree) -> PyTree:
        if axis is None:
            return part
        return jax.lax.optimization_barrier(jax.tree.map(lambda leaf: leaf[member], part))

    return jax.tree.map(pick, in_axes, args, is_leaf=lambda axis: axis is None)
