"""The sub-networks' training: side by side, one at a time, and again where one has diverged."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import dcjax
from dcjax import method, training
from experiments.method import factory
from experiments.method.divergence import Diverged, Watcher, entries
from experiments.method.factory import Setup

TOGETHER = "subnets"
RESTARTS = 3


class Outcome(NamedTuple):
    """The trained sub-networks.

    Attributes:
      stacked: all K; one that was dropped is as it was initialised.
      opt_state: the optimiser's, all K; None unless it is carried over.
      weights: the head's, if one was dropped: a mean over the others; else None.
      progress: of all; seconds are summed over those that were trained one after another.
    """

    stacked: dcjax.Stacked
    opt_state: PyTree
    weights: Float[Array, " K"] | None
    progress: method.Progress
    diverged: list[method.Divergence]


class _Group(NamedTuple):
    """Sub-networks that were trained together, in the leading axis of every leaf.

    Attributes:
      trees: their variables, and the optimiser's state if it is carried over.
      found: the steps at which members diverged.
    """

    trees: tuple[PyTree, PyTree]
    progress: method.Progress
    found: dict[int, int]


def alone(member: int) -> str:
    """Return the name of a sub-network's training by itself."""
    return f"subnet-{member}"


def train_one(this: Setup, member: int) -> bool:
    """Train one sub-network by itself; a later run of all collects it.

    Returns:
      Whether its last state was saved; the disk may be full.

    Raises:
      Diverged: it diverged, and may not be restarted (again).
    """
    name, start = alone(member), this.road.initial_subnets()
    group = _train(this, start, (member,), name)
    if group.found and this.settings.keeping.on_diverged == "restart":
        name, _ = _restarted(this, start, member)
    return _is_kept(this, name)


def train_all(this: Setup) -> Outcome:
    """Train the sub-networks that have not been trained, and collect all.

    Of several processes each trains some, and then all get all.

    Raises:
      Diverged: one diverged, and may not be restarted (again) or dropped.
    """
    action, subnets = this.settings.keeping.on_diverged, this.settings.subnets
    start, mine = this.road.initial_subnets(), training.local_members(this.settings.subnets)
    # By itself each can be collected by any number of processes.
    together = _together(this) if len(mine) == subnets else ()
    groups = [(together, TOGETHER)] if together else []
    groups += [((k,), alone(k)) for k in mine if k not in together]
    trained: dict[int, PyTree] = {}
    found: dict[int, int] = {}
    done: list[_Group] = []
    for members, name in groups:
        done.append(group := _train(this, start, members, name))
        trained |= {k: entries(group.trees, place) for place, k in enumerate(members)}
        for k, step in group.found.items():
            found[k] = step
            if action == "restart":
                done.append(_restarted(this, start, k)[1])
                trained[k] = entries(done[-1].trees, 0)
            else:
                # Its part of the head is zero, so that any finite values will do.
                momenta = jax.tree.map(jnp.zeros_like, trained[k][1])
                trained[k] = entries(start, k), momenta
    progress = _sum(done) if done else method.Progress()
    if len(mine) < subnets:
        trained, found, progress = _gathered(this, start, trained, found, progress)
    diverged: list[method.Divergence] = [
        {"subnet": k, "step": step, "then": action} for k, step in found.items()
    ]
    dropped = [*found] if action == "drop" else []
    kept = np.array([k not in dropped for k in range(subnets)], np.float32)
    if not kept.any():
        raise Diverged("all sub-networks diverged: take a lower --learning-rate")
    stacked, opt_state = _stack([trained[k] for k in range(subnets)])
    weights = None if kept.all() else jnp.asarray(kept / kept.sum())
    return Outcome(stacked, opt_state, weights, progress, diverged)


def _gathered(
    this: Setup,
    start: dcjax.Stacked,
    trained: dict[int, PyTree],
    found: dict[int, int],
    progress: method.Progress,
) -> tuple[dict[int, PyTree], dict[int, int], method.Progress]:
    """Collect from all processes what each has trained: the one communication of this stage."""
    subnets = this.settings.subnets
    mine = training.local_members(subnets)
    if mine:
        trees = _stack([trained[k] for k in mine])
    else:
        carried = this.settings.transfer.carry_momentum
        params = start.tree["params"]
        initial = jax.vmap(_recipe(this).optimizer.init)(params) if carried else None
        trees = jax.tree.map(lambda leaf: leaf[:0], (start, initial))
    steps = np.array([found.get(k, 0) for k in mine], np.int32)
    # A process's sums, an equal part of them with each of its sub-networks.
    shares = [progress.device_seconds / max(1, len(mine)), progress.devices / max(1, len(mine))]
    times = [progress.seconds, progress.compile_seconds, *shares]
    each = np.array([times] * len(mine), np.float32).reshape(-1, len(times))
    trees, steps, each = training.gather_members((trees, steps, each), subnets)
    seconds, compile_seconds, device_seconds, devices = np.asarray(each).T.tolist()
    return (
        {k: entries(trees, k) for k in range(subnets)},
        {k: int(step) for k, step in enumerate(np.asarray(steps)) if step},
        method.Progress(
            epochs=this.settings.training.subnet_epochs,
            seconds=max(seconds),
            device_seconds=sum(device_seconds),
            compile_seconds=max(compile_seconds),
            devices=round(sum(devices)),
        ),
    )


_stack = jax.jit(lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))


def _sum(groups: Sequence[_Group]) -> method.Progress:
    """Return the progress of groups that were trained one after another."""
    each = [group.progress for group in groups]
    if len(each) == 1:
        return each[0]
    return method.Progress(
        epochs=max(progress.epochs for progress in each),
        seconds=sum(progress.seconds for progress in each),
        device_seconds=sum(progress.device_seconds for progress in each),
        compile_seconds=sum(progress.compile_seconds for progress in each),
        devices=max(progress.devices for progress in each),
    )


def _together(this: Setup) -> tuple[int, ...]:
    """Return the members to train side by side: those not trained alone before that began."""
    if this.keeper.has(TOGETHER):
        with this.keeper.opened(TOGETHER) as kept:
            assert kept.found is not None
            return tuple(kept.found.record["members"])
    return tuple(k for k in range(this.settings.subnets) if not _is_kept(this, alone(k)))


def _is_kept(this: Setup, name: str) -> bool:
    """Return whether there is a checkpoint of the end of that training."""
    if not this.keeper.has(name):
        return False
    with this.keeper.opened(name) as kept:
        return kept.found is not None and kept.found.record["finished"]


def _restarted(this: Setup, start: dcjax.Stacked, member: int) -> tuple[str, _Group]:
    """Restart a sub-network that diverged until it does not; return the training and its name."""
    for attempt in range(1, RESTARTS + 1):
        name = _restart(attempt).format(member)
        rate = this.settings.training.learning_rate / 2**attempt
        this.keeper.say(f"sub-network {member} again, at half the learning rate: {rate:g}")
        group = _train(this, start, (member,), name, attempt)
        if not group.found:
            return name, group
    raise Diverged(
        f"sub-network {member} diverged again after {RESTARTS} restarts, each at half the learning "
        "rate of the one before: take a lower --learning-rate, or --on-diverged drop"
    )


def _restart(attempt: int) -> str:
    return f"subnet-{{}}-restart{attempt}"


def _train(
    this: Setup, start: dcjax.Stacked, members: Sequence[int], name: str, attempt: int = 0
) -> _Group:
    """Train some sub-networks side by side, or take them from their checkpoints."""
    trainer = training.side_by_side(
        this.road.narrow(this.road.network),
        this.road.samples,
        _recipe(this, attempt),
        this.settings.subnets,
        members=members,
    )
    watcher = Watcher(members, this.keeper, _restart(attempt + 1))
    whole = len(members) == this.settings.subnets
    key = this.road.keys(TOGETHER)[1]
    plan = method.Plan(
        name,
        method.STAGES[TOGETHER] + ("" if whole else " " + ", ".join(map(str, members))),
        trainer,
        entries(start, jnp.array(members)),
        jax.random.fold_in(key, attempt) if attempt else key,
        this.settings.training.subnet_epochs,
        this.road.subnets_evaluation(members),
        watch=watcher,
        fresh_key=attempt > 0,
    )
    state, progress = method.run_stage(plan, this.road.train, this.keeper)
    watcher.stop_if_asked()
    carried = this.settings.transfer.carry_momentum
    opt_state = trainer.to_host(state.opt_state) if carried else None
    return _Group((trainer.finish(state), opt_state), progress, watcher.found)


def _recipe(this: Setup, attempt: int = 0) -> training.Recipe:
    """Return the recipe; each further attempt has half the learning rate of the one before."""
    chosen, part = this.settings.training, 2.0**-attempt
    rate, final = chosen.learning_rate * part, this.settings.subnet_final_rate * part
    schedule = factory.Schedule(chosen.subnet_epochs, rate, chosen.warmup_epochs, final)
    return factory.recipe(chosen, this.dataset, schedule)
