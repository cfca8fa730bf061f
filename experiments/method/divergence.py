"""Sub-networks that diverge: noticed at once, their last good state kept for a restart."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from dcjax import training
from dcjax.checkpoints import Checkpoints
from experiments.run.checkpointing import CHECKPOINTS, Keeper, Kept


class Diverged(Exception):
    """A sub-network's loss became NaN or infinite; the message says what can be done."""


class Watcher:
    """A watch on sub-networks whose loss or variables become NaN or infinite.

    All states are in plain form, each leaf with an entry for each member in its leading axis.

    * `found`: the step at which each member that diverged did so.
    """

    def __init__(self, members: Sequence[int], keeper: Keeper, restart: str):
        """Watch the members' training.

        Args:
          members: their numbers among the K sub-networks.
          keeper: keeps their checkpoints.
          restart: the name of the training that would restart one, formatted with its number.
        """
        self.found: dict[int, int] = {}
        self._members = tuple(members)
        self._keeper = keeper
        self._restart = restart
        self._kept: set[int] = set()

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint stores of it."""
        return {"members": list(self._members), "diverged": [*self.found.items()]}

    def resume(self, record: dict[str, Any]) -> None:
        """Continue from what a checkpoint stored."""
        self.found = dict(record["diverged"])
        self._kept |= {*self.found}

    def before_save(self, kept: Kept, state: training.TrainState) -> None:
        """Keep the last good state of members that this state, about to be saved, has lost."""
        finite = np.asarray(_finite(state.variables))
        for place, k in enumerate(self._members):
            if k not in self._kept and not finite[place]:
                self._kept.add(k)
                self._keep_last_good(kept, state, place)

    def after_epoch(self, state: training.TrainState, done: training.Epoch) -> None:
        """Report the members that diverged in an epoch, and stop if that is asked for."""
        end, finite = training.steps_done(state), np.asarray(_finite(state.variables))
        for place, k in enumerate(self._members):
            bad = ~np.isfinite(done.losses[:, place])
            if k in self.found or (finite[place] and not bad.any()):
                continue
            first = int(bad.argmax()) + 1 if bad.any() else len(bad)
            self.found[k] = end - len(bad) + first
            self._keeper.say(f"sub-network {k} diverged at step {self.found[k]}")
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raise `Diverged` if a member has diverged and `--on-diverged` is `stop`."""
        if self.found and self._keeper.how.on_diverged == "stop":
            places = ", ".join(f"sub-network {k} at step {s}" for k, s in self.found.items())
            raise Diverged(
                f"{places}: the loss became NaN or infinite. To continue, repeat the command with "
                "--on-diverged restart (from the last good checkpoint, at half the learning rate) "
                "or --on-diverged drop (without that sub-network); or begin another run with a "
                "lower --learning-rate"
            )

    def _keep_last_good(self, kept: Kept, state: training.TrainState, place: int) -> None:
        good = kept.before()
        if good is None:
            return  # a restart begins from the initial variables
        past = entries(good.into(state), jnp.array([place]))
        if not _finite(past.variables)[0]:
            return
        k = self._members[place]
        # Its time so far counts with the training that it was a part of.
        name = self._restart.format(k)
        new = self._keeper.record(name) | {"metrics": [self._keeper.log.name, 0]}
        new |= {"finished": False, "progress": {}, "members": [k], "diverged": []}
        folder = self._keeper.workdir / CHECKPOINTS / name
        with Checkpoints(folder, keep=self._keeper.how.keep) as checkpoints:
            checkpoints.save(good.step, past, good.record | new)


@jax.jit
def entries(tree: PyTree, index: Any) -> PyTree:
    """Return one entry of the leading axis of every leaf, or several, in one compiled program."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


@jax.jit
def _finite(tree: PyTree) -> Bool[Array, " members"]:
    floats = (leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    finite = [jnp.isfinite(leaf.reshape(len(leaf), -1)).all(axis=1) for leaf in floats]
    return jnp.stack(finite).all(axis=0)
