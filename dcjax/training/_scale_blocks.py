"""Learning rates that differ between diagonal blocks, off-diagonal blocks and the head."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from dcjax._compose.compose import check_shapes, compose, extract, layout_of
from dcjax._compose.stacked import Stacked
from dcjax._layout.layout import Layout, path_of


def scale_blocks(
    like: Layout | Stacked,
    diagonal: optax.ScalarOrSchedule = 1.0,
    off_diagonal: optax.ScalarOrSchedule = 1.0,
    head: optax.ScalarOrSchedule = 1.0,
) -> optax.GradientTransformation:
    """Scale the updates of the diagonal blocks, the off-diagonal blocks, and the head's kernel.

    With u the update and D u its part on the diagonal blocks (the entries that `dcjax.extract`
    reads, biases and normalisation parameters among them), `u ← d_t D u + o_t (u − D u)`, and `h_t`
    times that for the head's kernel, which is all diagonal. Behind the optimiser in a chain the
    factors scale the learning rate; in front of it they scale the gradient.

    The composed head holds the sub-networks' kernels divided by K, but its gradient is not divided,
    so an SGD step of rate η moves the logits as far as rate K η would move a sub-network's.
    `head=1/K` undoes that. Up to K = 4 the faster head gains accuracy; above, it loses what was
    composed, and the experiments take `head=4/K`.

    Args:
      like: the layout of the trained parameters, or a `Stacked` that has it, such as
        `stacked["params"]`.
      diagonal: d, a number, or an optax schedule of the step t.
      off_diagonal: o, likewise.
      head: h, likewise.

    Returns:
      An optax transformation, for parameters of the global network.

    Raises:
      ValueError: in an update that does not fit the layout.

    >>> import dcjax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jnp.ones((2, 16, 16, 3)))
    >>> blocks = scale_blocks(stacked["params"], diagonal=0.0)
    >>> optimizer = optax.chain(optax.sgd(0.1), blocks)
    >>> params = dcjax.compose(stacked["params"])
    >>> change, _ = optimizer.update(params, optimizer.init(params))
    >>> bool(jax.tree.all(jax.tree.map(lambda u: (u == 0).all(), change)))
    True
    """
    layout = layout_of(like)
    # Telling the blocks apart copies all updates; equal factors do not need it.
    numbers = all(isinstance(factor, (int, float)) for factor in (diagonal, off_diagonal))
    alike = numbers and diagonal == off_diagonal

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByScheduleState]:
        del params
        check_shapes(updates, layout.global_shapes, "global network")
        d, o, h = (
            jnp.asarray(factor(state.count) if callable(factor) else factor)
            for factor in (diagonal, off_diagonal, head)
        )
        between = updates
        if not alike:
            blocks = extract(updates, like=layout)
            between = compose(jax.tree.map(jnp.zeros_like, blocks), into=updates)

        def scale(path: Any, u: Any, off: Any) -> Any:
            u = _times(d, u) if alike else _times(d, u - off) + _times(o, off)
            return _times(h, u) if layout.by_path[path_of(path)].head else u

        updates = jax.tree_util.tree_map_with_path(scale, updates, between)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def _times(factor: Array, u: Array) -> Array:
    return factor.astype(u.dtype) * u
