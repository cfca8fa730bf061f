"""The one `pmap`: independent sub-networks over the devices, several on each if need be."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dcjax._checks import leaves_of, path_name, raise_listed
from dcjax._pytrees import reshape_lead
from dcjax.training._devices import DEVICES, Device, on_one, sharding


class Members(NamedTuple):
    """Functions that put members on devices and run them there.

    On the devices a leaf has the axes (devices, members on each, …).

    * `put`: convert a plain pytree with leading axis `members` to that form; `get`: its inverse.
    * `map`: turn a function of one member into the compiled function of all.
    """

    put: Callable[[PyTree], PyTree]
    get: Callable[[PyTree], PyTree]
    map: Callable[..., Any]


def members_on(devices: Sequence[Device], members: int, form: str) -> Members:
    """Run members over devices by `jax.pmap`, and on each device in the engine's form."""
    shape = (len(devices), members // len(devices))

    def put(tree: PyTree) -> PyTree:
        _check_lead(tree, (members,))
        return jax.device_put(reshape_lead(tree, shape, axes=1), sharding(devices, DEVICES))

    def get(tree: PyTree) -> PyTree:
        _check_lead(tree, shape)
        return reshape_lead(on_one(tree, devices[0]), (members,), axes=2)

    def over_devices(function: Callable[..., Any], in_axes: Any, **options: Any) -> Any:
        @functools.wraps(function)
        def on_device(*args: Any) -> Any:
            # XLA must not fuse one member's sums with another's: it could take them in another
            # order than on a device by itself, and the bits would differ.
            def member(j: Any) -> Any:
                return jax.lax.optimization_barrier(function(*_member(args, in_axes, j)))

            if form == "map":
                return jax.lax.map(member, jnp.arange(shape[1]))
            results = [member(j) for j in range(shape[1])]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

        return jax.pmap(on_device, DEVICES, in_axes=in_axes, devices=devices, **options)

    return Members(put, get, over_devices)


def _check_lead(tree: PyTree, lead: tuple[int, ...]) -> None:
    """Refuse a tree of another trainer, or in the form of the host in place of the devices'."""
    leaves = leaves_of(tree, "tree").items()
    shapes = {path: jnp.shape(leaf) for path, leaf in leaves}
    raise_listed(
        f"expected a tree of this trainer, whose leaves have the leading axes {lead}, got",
        [f"{path_name(p)}: shape {s}" for p, s in shapes.items() if s[: len(lead)] != lead][:5],
        "to_devices takes a tree on the host, to_host one on the devices, each of its own trainer",
    )


def _member(args: Any, in_axes: Any, member: Any) -> Any:
    """Pick the arguments of one member on a device; those with the axis None are shared."""

    def pick(axis: int | None, part: PyTree) -> PyTree:
        if axis is None:
            return part
        return jax.lax.optimization_barrier(jax.tree.map(lambda leaf: leaf[member], part))

    return jax.tree.map(pick, in_axes, args, is_leaf=lambda axis: axis is None)
