"""The choice of devices, and of how a kind of device runs several sub-networks."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

DEVICES = "devices"  # the mesh axis over which members and batches are cut
Device = Any  # a jax.Device: a name in a compiled module, which type checkers do not resolve


def physical_devices(devices: Sequence[Device]) -> int:
    """Count physical devices: the host devices of one CPU (one process) count as one.

    Args:
      devices: the devices that a trainer uses.

    Returns:
      The factor from seconds to device-seconds.

    >>> physical_devices(jax.devices("cpu"))
    1
    """
    cpus = {device.process_index for device in devices if device.platform == "cpu"}
    return len(cpus) + sum(device.platform != "cpu" for device in devices)


def choose_devices(parts: int, devices: Sequence[Device] | None = None) -> tuple[Device, ...]:
    """Choose the devices that run equal numbers of `parts`: the largest divisor that fits.

    Four sub-networks on three devices use two, with two on each; five on four devices use one. A
    batch of 128 examples takes any power of two up to 128. The host devices of one CPU share its
    cores and are used all the same, so that tests on them run the program of many devices. Of
    several processes each gives equally many, so that none is left out.

    Raises:
      ValueError: the processes cannot share the parts equally.
    """
    devices = tuple(jax.devices() if devices is None else devices)
    if parts < 1 or not devices:
        raise ValueError(f"expected at least one part and one device, got {parts} and {devices}")
    each: dict[int, list[Device]] = {}
    for device in devices:
        each.setdefault(device.process_index, []).append(device)
    if parts % len(each):
        raise ValueError(
            f"{len(each)} processes cannot share {parts} parts equally: take a batch size that is "
            f"a multiple of {len(each)}, or another number of processes"
        )
    fewest = min(len(mine) for mine in each.values())
    size = next(n for n in range(fewest, 0, -1) if parts % (n * len(each)) == 0)
    return tuple(device for mine in each.values() for device in mine[:size])


class Engine(NamedTuple):
    """The way in which a device runs its sub-networks.

    * `members`: `"unrolled"`, one after another in one program; `"map"`, in a compiled loop.
    * `whole_epochs`: whether an epoch is one call, a compiled loop over its steps.
    """

    members: Literal["unrolled", "map"]
    whole_epochs: bool


def engine_for(platform: str) -> Engine:
    """Return the fastest engine of a platform.

    On the CPU XLA's convolutions are several times slower in the body of a loop. On accelerators a
    loop compiles one sub-network's program, and is as fast as its members one after another.

    >>> engine_for("cpu")
    Engine(members='unrolled', whole_epochs=False)
    """
    return Engine("unrolled", False) if platform == "cpu" else Engine("map", True)


def sharding(devices: Sequence[Device], *axes: str | None) -> NamedSharding:
    """Return the sharding that cuts axes named DEVICES; without one, every device has a copy."""
    return NamedSharding(Mesh(np.array(devices), (DEVICES,)), PartitionSpec(*axes))


def on_one(tree: PyTree, device: Device) -> PyTree:
    """Put a tree on one device, its arrays' types without the mesh that they come from.

    `device_put` keeps the mesh in the type, and JAX refuses it beside a mesh of the caller's.
    """
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), jax.device_put(tree, device))


class OutsideMesh:
    """A function that runs as without the mesh of `jax.set_mesh`; trainers bring their own.

    JAX refuses to run a program of one mesh within the context of another.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        with _no_mesh():
            return self._function(*args)

    def lower(self, *args: Any) -> Any:
        """Lower the function, which `jax.jit` or `jax.pmap` has made."""
        with _no_mesh():
            return cast(Any, self._function).lower(*args)


def _no_mesh() -> contextlib.AbstractContextManager[Any]:
    """Return a context without a mesh; JAX's takes microseconds, which a step need not pay."""
    if jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    return jax.set_mesh(Mesh(np.empty((), object), ()))


def on_mesh(function: Callable[..., Any], devices: Sequence[Device]) -> Callable[..., Any]:
    """Trace the function with the devices as the mesh in context.

    XLA cannot partition a call into compiled code: `dcjax.native.conv_general_dilated` reads from
    the mesh that the batch is cut, and cuts the call itself.
    """

    @functools.wraps(function)
    def within(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(sharding(devices).mesh.abstract_mesh):
            return function(*args)

    return within
