"""Several processes: plain trees to arrays over all their devices, gathered and compared.

A plain tree is the same in every process. `jax.device_put` would compare all of it by a collective;
here only a digest travels.
"""

import collections
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from dcjax._checks import check_subnets
from dcjax._pytrees import take_entries
from dcjax.training._devices import DEVICES, Device, sharding
from dcjax.training._peers import client

_PATIENCE = 24 * 60 * 60  # seconds; a process that has died is noticed by its missing heartbeats
_meetings: collections.Counter[tuple[int, ...]] = collections.Counter()


def put(tree: PyTree, form: NamedSharding, name: str) -> PyTree:
    """Put a plain tree on devices, which may be those of several processes.

    Raises:
      ValueError: the processes give different values; says which processes.
    """
    if form.is_fully_addressable:
        return jax.device_put(tree, form)
    tree = plain(tree)
    check_same(tree, np.ravel(np.asarray(form.mesh.devices)).tolist(), name)
    return jax.tree.map(lambda leaf: _put_leaf(leaf, form), tree)


def plain(tree: PyTree) -> PyTree:
    """Return a tree of copies in all processes as arrays of this process alone."""

    def local(leaf: jax.Array) -> jax.Array:
        reaches_out = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        return leaf.addressable_data(0) if reaches_out else leaf

    return jax.tree.map(local, tree)


def gather(tree: PyTree, devices: Sequence[Device]) -> PyTree:
    """Stack the trees of several processes, of equal shapes, along a new leading axis.

    One compiled program, with one collective for each leaf.

    Args:
      tree: this process's arrays.
      devices: an entry of the leading axis for each; this process's tree is that of all its own.

    Returns:
      The stacked tree, on a device of this process.
    """
    meet(devices)
    mine = [device for device in devices if device.process_index == jax.process_index()]

    def cut(leaf: Any) -> jax.Array:
        pieces = [jax.device_put(jnp.asarray(leaf)[None], device) for device in mine]
        shape = (len(devices), *jnp.shape(leaf))
        return jax.make_array_from_single_device_arrays(shape, sharding(devices, DEVICES), pieces)

    leaves, structure = jax.tree.flatten(tree)
    copied = jax.jit(lambda leaves: leaves, out_shardings=sharding(devices))
    return structure.unflatten(plain(copied([cut(leaf) for leaf in leaves])))


def meet(devices: Sequence[Device]) -> None:
    """Wait until the processes of these devices have all come here.

    A group's first collective over gloo fails if they come to it more than 30 seconds apart, as
    after a stage without communication, or where some have a program in their cache and some not.
    """
    numbers = sorted({device.process_index for device in devices})
    if len(numbers) == 1:
        return
    _meetings[tuple(numbers)] += 1
    name = f"dcjax {numbers} {_meetings[tuple(numbers)]}"
    client().wait_at_barrier(name, timeout_in_ms=1000 * _PATIENCE, process_ids=numbers)


def local_members(subnets: int) -> tuple[int, ...]:
    """Return the numbers of the sub-networks that this process trains: a share of the K.

    Consecutive numbers, as equal in number as can be. Without `jax.distributed` they are all.

    Args:
      subnets: K.

    Returns:
      The numbers, for `side_by_side(members=…)`; none where there are more processes than K.

    >>> local_members(4)
    (0, 1, 2, 3)
    """
    return _members(check_subnets(subnets), jax.process_count())[jax.process_index()]


def gather_members(tree: PyTree, subnets: int) -> PyTree:
    """Collect the sub-networks of all processes in every process: the one communication of stage 1.

    Every process calls it, one without members too, whose leaves have an empty leading axis. Values
    are copied bit for bit. Without `jax.distributed` the tree is returned as it is.

    Args:
      tree: a pytree of arrays, or a `Stacked`, with `local_members(subnets)` in the leading axis.
      subnets: K.

    Returns:
      The tree with all K in the leading axis.

    Raises:
      ValueError: a leaf has another leading axis.

    >>> gather_members({"w": jnp.arange(4)}, 4)
    {'w': Array([0, 1, 2, 3], dtype=int32)}
    """
    everyone = _members(check_subnets(subnets), jax.process_count())
    mine = everyone[jax.process_index()]
    wrong = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)} - {(len(mine),)}
    if wrong:
        raise ValueError(
            f"expected a leading axis of {len(mine)} in every leaf, for sub-networks "
            f"{mine}, got {sorted(wrong)}: train local_members({subnets})"
        )
    if len(everyone) == 1:
        return tree
    most = len(everyone[0])

    def padded(leaf: jax.Array) -> jax.Array:
        return jnp.concatenate([leaf, jnp.zeros((most - len(mine), *leaf.shape[1:]), leaf.dtype)])

    gathered = gather(jax.tree.map(padded, tree), _first_devices())
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), gathered)
    places = [most * p + j for p, each in enumerate(everyone) for j in range(len(each))]
    return take_entries(flat, jnp.array(places))


def from_first(data: bytes) -> bytes:
    """Return process 0's bytes in every process; the others' are ignored.

    >>> from_first(b"mine")
    b'mine'
    """
    return from_all(data if jax.process_index() == 0 else b"")[0]


def from_all(data: bytes) -> list[bytes]:
    """Return the bytes of all processes, in the order of their numbers, in every process.

    >>> from_all(b"mine")
    [b'mine']
    """
    if jax.process_count() == 1:
        return [data]
    firsts = _first_devices()
    sizes = np.asarray(gather(np.int32(len(data)), firsts)).tolist()
    filled = np.frombuffer(data.ljust(max(sizes), b"\0"), np.uint8)
    rows = np.asarray(gather(filled, firsts))
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def _first_devices() -> list[Device]:
    """Return the first device of each process."""
    numbers = range(jax.process_count())
    return [next(d for d in jax.devices() if d.process_index == number) for number in numbers]


def _members(subnets: int, processes: int) -> list[tuple[int, ...]]:
    """Deal the numbers out to the processes.

    >>> _members(4, 3)
    [(0, 1), (2,), (3,)]
    """
    return [tuple(map(int, part)) for part in np.array_split(np.arange(subnets), processes)]


def check_same(tree: PyTree, devices: Sequence[Device], name: str) -> None:
    """Raise a ValueError unless the devices' processes give the same values: compare a digest."""
    numbers = sorted({device.process_index for device in devices})
    if len(numbers) == 1:
        return
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    digest = hashlib.sha256(str(structure).encode())
    for path, leaf in paths:
        data = _data(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {data.dtype} {data.shape}".encode())
        digest.update(np.ascontiguousarray(data).data)
    digests = np.asarray(gather(np.frombuffer(digest.digest(), np.uint32), devices))
    differs = (digests != digests[0]).any(axis=1)
    others = sorted({d.process_index for d, other in zip(devices, differs, strict=True) if other})
    if others:
        raise ValueError(
            f"expected the same {name} in every process; those of processes {others} differ from "
            f"those of process {devices[0].process_index}: use the same seed, data and versions "
            "everywhere"
        )


def _data(leaf: PyTree) -> np.ndarray:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _put_leaf(leaf: jax.Array | np.ndarray, form: NamedSharding) -> jax.Array:
    pieces = form.addressable_devices_indices_map(jnp.shape(leaf))
    arrays = [
        jax.device_put(leaf[() if index is None else index], device)
        for device, index in pieces.items()
    ]
    return jax.make_array_from_single_device_arrays(jnp.shape(leaf), form, arrays)
