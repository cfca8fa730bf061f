"""The state of a training run."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Key, PyTree


class TrainState(NamedTuple):
    """Everything that the rest of the training depends on.

    `key` and `step` determine every random number. Side by side every leaf, `step` and `key` too,
    has the leading axis K, and `variables` is a `Stacked` if it was one at the start.

    * `step`: int32, the steps done.
    * `key`: a typed random key; it never changes.
    * `variables`: the Flax collections, `{"params": …, "batch_stats": …}`.
    * `opt_state`: the optimiser's state.
    * `averaged`: the running average of the variables, if the recipe keeps one; half precision is
      averaged in float32.
    """

    step: Int[Array, "*K"]
    key: Key[Array, "*K"]
    variables: PyTree
    opt_state: PyTree
    averaged: PyTree = None

    @property
    def result(self) -> PyTree:
        """The variables to evaluate and to hand on: the average if there is one.

        >>> TrainState(jax.numpy.int32(0), jax.random.key(0), {"params": 1}, ()).result
        {'params': 1}
        """
        if self.averaged is None:
            return self.variables
        return jax.tree.map(
            lambda a, v: a if a.dtype == v.dtype else a.astype(v.dtype),
            self.averaged,
            self.variables,
        )


def steps_done(state: TrainState) -> int:
    """Return the steps done, the same for all sub-networks; wait for the state.

    >>> import jax.numpy as jnp
    >>> steps_done(TrainState(jnp.array([7, 7]), jax.random.split(jax.random.key(0)), {}, ()))
    7
    """
    return int(np.ravel(jax.device_get(state.step))[0])
