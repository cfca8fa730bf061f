"""Rates of their own for the blocks that the sub-networks have trained, and for those between."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dcjax._compose.compose import check_shapes, compose, extract, layout_of
from dcjax._compose.stacked import Stacked
from dcjax._layout.layout import Layout, path_of


def scale_blocks(
    like: Layout | Stacked,
    diagonal: optax.ScalarOrSchedule = 1.0,
    off_diagonal: optax.ScalarOrSchedule = 1.0,
    head: optax.ScalarOrSchedule = 1.0,
) -> optax.GradientTransformation:
    """Scales the updates of the diagonal blocks, the off-diagonal ones, and the head's kernel.

    With u the update and D u its part on the diagonal blocks (what `dcjax.extract` reads:
    biases and the parameters of normalisation layers belong to it):
    `u ← d_t D u + o_t (u − D u)`, and `h_t` times that for the kernel that merges the sub-networks,
    all of which is diagonal. At the end of a chain, behind the optimiser, the factors are those of
    the learning rate; in front of it, of the gradient.

    Off-diagonal blocks start from zero, so that a factor above 1 lets the coupling of the
    sub-networks grow faster than what they have learned is changed; a schedule for `diagonal` that
    is 0 in the first steps freezes their blocks meanwhile.

    The head of the mean holds K-ths of the sub-networks' kernels, and the gradient at a K-th is the
    sub-network's own, so that an SGD step of rate η moves the logits as K η would move a
    sub-network's. `head=1/K` makes up for all of it. When K is large, a rate that suits the
    sub-networks is above what the head stands, and the first steps lose what was composed; up to
    K = 4 the faster head was found to be a gain, and `head=4/K` above is what the experiments take.

    Args:
      like: the layout of the trained parameters, or a `Stacked` that has it, such as
        `stacked["params"]`.
      diagonal: d, a number, or an optax schedule of the step t.
      off_diagonal: o, likewise.
      head: h, likewise.

    Returns:
      An optax transformation, for parameters of the global network. Its state is the count of
      steps.

    Raises:
      ValueError: later, from its update: if the updates do not fit the layout.

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
    # Blocks of one factor need not be told apart, which takes a copy of all.
    plain = isinstance(diagonal, (int, float)) and isinstance(off_diagonal, (int, float))
    alike = plain and diagonal == off_diagonal

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByScheduleState]:
        del params
        check_shapes(updates, layout.global_shapes, "global network")
        d, o, h = (_at(factor, state.count) for factor in (diagonal, off_diagonal, head))
        if alike:
            updates = jax.tree.map(lambda u: _times(d, u), updates)
        else:
            blocks = extract(updates, like=layout)
            between = compose(jax.tree.map(jnp.zeros_like, blocks), into=updates)
            updates = jax.tree.map(
                lambda u, off: _times(d, u - off) + _times(o, off), updates, between
            )

        def merging(path: Any, u: Any) -> Any:
            return _times(h, u) if layout.by_path[path_of(path)].head else u

        updates = jax.tree_util.tree_map_with_path(merging, updates)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def _at(factor: optax.ScalarOrSchedule, count: Any) -> Any:
    return jnp.asarray(factor(count) if callable(factor) else factor)


def _times(factor: Any, u: Any) -> Any:
    return factor.astype(u.dtype) * u
