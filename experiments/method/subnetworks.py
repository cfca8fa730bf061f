"""The sub-networks' training: side by side, one at a time, and again where one has diverged."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

import dcjax
from dcjax import training
from dcjax._pytrees import stack_trees, take_entries
from dcjax.checkpoints import Checkpoints
from experiments.data import Dataset
from experiments.method import factory, stage
from experiments.run.checkpointing import FOLDER, Keeper, Kept
from experiments.run.signals import Diverged
from experiments.settings.schema import Settings

PyTree = Any
TOGETHER = "subnets"
RESTARTS = 3


class Members(NamedTuple):
    """What all the sub-networks' trainings share.

    Attributes:
      network: the global network as it is trained.
      start: the sub-networks' variables before training, all K.
      key: of their training.
    """

    settings: Settings
    dataset: Dataset
    samples: dcjax.samples.Samples
    network: nn.Module
    start: dcjax.Stacked
    key: Key[Array, ""]
    keeper: Keeper


class Outcome(NamedTuple):
    """The trained sub-networks.

    Attributes:
      stacked: all K; one that was dropped is as it was before training.
      opt_state: the optimiser's, all K; None unless it is to be carried over.
      weights: the head's, where one was dropped: a mean over the others.
      progress: seconds are summed over those that were trained apart.
      diverged: for the results: sub-network, step, and what was done.
    """

    stacked: dcjax.Stacked
    opt_state: PyTree
    weights: Float[Array, " K"] | None
    progress: stage.Progress
    devices: int
    diverged: list[dict[str, Any]]


class Group(NamedTuple):
    """What came of some that were trained together; leaves have them in the leading axis.

    Attributes:
      name: of the training, and of its checkpoints.
      found: the steps at which members diverged.
    """

    name: str
    variables: PyTree
    opt_state: PyTree
    progress: stage.Progress
    devices: int
    found: dict[int, int]


def alone(member: int) -> str:
    """The name of a sub-network's training by itself."""
    return f"subnet-{member}"


def train_one(this: Members, member: int) -> bool:
    """Train one sub-network by itself, for a later run of the whole.

    Returns:
      Whether what it came to is kept: a disk may be full.

    Raises:
      Diverged: it has diverged, more than RESTARTS times or without leave to restart.
    """
    group = _train(this, (member,), alone(member))
    if group.found and this.settings.keeping.on_diverged == "restart":
        group = _restarted(this, member)
    return _is_kept(this, group.name)


def train_all(this: Members) -> Outcome:
    """Train the sub-networks that have not been trained, and collect all.

    Raises:
      Diverged: one has diverged, more than RESTARTS times or without leave to go on.
    """
    action, subnets = this.settings.keeping.on_diverged, this.settings.subnets
    together = _together(this)
    groups = [(together, TOGETHER)] if together else []
    groups += [((k,), alone(k)) for k in range(subnets) if k not in together]
    trained: dict[int, PyTree] = {}
    progress, devices = stage.Progress(), 1
    diverged: list[dict[str, Any]] = []
    for members, name in groups:
        group = _train(this, members, name)
        progress = _sum(progress, group.progress)
        devices = max(devices, group.devices)
        for place, k in enumerate(members):
            trained[k] = _pick(group, place)
        for k, step in group.found.items():
            diverged.append({"subnet": k, "step": step, "then": action})
            if action == "restart":
                again = _restarted(this, k)
                progress = _sum(progress, again.progress)
                trained[k] = _pick(again, 0)
            else:
                trained[k] = _untrained(this, k)
    stacked, opt_state = stack_trees([trained[k] for k in range(subnets)])
    dropped = [entry["subnet"] for entry in diverged if entry["then"] == "drop"]
    weights = np.array([k not in dropped for k in range(subnets)], np.float32)
    if not weights.any():
        raise Diverged("all sub-networks have diverged, none is left: take a lower --learning-rate")
    shares = jnp.asarray(weights / weights.sum()) if dropped else None
    return Outcome(stacked, opt_state, shares, progress, devices, diverged)


def _pick(group: Group, place: int) -> tuple[PyTree, PyTree]:
    """One member's variables and the optimiser's state."""
    return take_entries((group.variables, group.opt_state), place)


def _untrained(this: Members, member: int) -> tuple[PyTree, PyTree]:
    """The same of a member before training."""
    variables = take_entries(this.start, member)
    if not this.settings.transfer.carry_momentum:
        return variables, None
    return variables, _recipe(this).optimizer.init(variables.tree["params"])


def _together(this: Members) -> tuple[int, ...]:
    """Those that are trained side by side: what has not been trained alone before that began."""
    everyone = tuple(range(this.settings.subnets))
    if this.keeper.has(TOGETHER):
        with this.keeper.opened(TOGETHER) as kept:
            assert kept.found is not None
            return tuple(kept.found.record["members"])

    return tuple(k for k in everyone if not _is_kept(this, alone(k)))


def _is_kept(this: Members, name: str) -> bool:
    """Whether there is a checkpoint of that training's end."""
    if not this.keeper.has(name):
        return False
    with this.keeper.opened(name) as kept:
        return kept.found is not None and kept.found.record["finished"]


def _restarted(this: Members, member: int) -> Group:
    """Train a sub-network that has diverged again, from before, until it does not."""
    for attempt in range(1, RESTARTS + 1):
        name = _restart(member, attempt)
        rate = this.settings.training.learning_rate / 2**attempt
        this.keeper.voice.say(f"sub-network {member} again, at half the rate: {rate:g}")
        group = _train(this, (member,), name, attempt)
        if not group.found:
            return group
    raise Diverged(
        f"sub-network {member} diverged again after {RESTARTS} restarts, each at half the rate "
        "before: take a lower --learning-rate, or --on-diverged drop"
    )


def _restart(member: int, attempt: int) -> str:
    return f"{alone(member)}-restart{attempt}"


def _train(this: Members, members: Sequence[int], name: str, attempt: int = 0) -> Group:
    """Train some side by side, at the rate of the attempt."""
    trainer = training.side_by_side(
        dcjax.decompose(this.network, this.settings.subnets),
        this.samples,
        _recipe(this, attempt),
        this.settings.subnets,
        members=members,
    )
    watcher = Watcher(members, this.keeper, attempt)
    whole = len(members) == this.settings.subnets
    title = "sub-networks" + ("" if whole else " " + ", ".join(map(str, members)))
    plan = stage.Plan(
        name,
        title,
        trainer,
        take_entries(this.start, jnp.array(members)),
        jax.random.fold_in(this.key, attempt) if attempt else this.key,
        this.settings.training.subnet_epochs,
        watch=watcher,
        fresh_key=attempt > 0,
    )
    trained = stage.train(plan, this.dataset.train, this.keeper)
    watcher.refuse()
    opt_state = (
        trainer.to_host(trained.state.opt_state) if this.settings.transfer.carry_momentum else None
    )
    devices = len(trainer.devices)
    return Group(name, trained.variables, opt_state, trained.progress, devices, watcher.found)


def _recipe(this: Members, attempt: int = 0) -> training.Recipe:
    """Each attempt after the first has half the rate of the one before."""
    chosen, part = this.settings.training, 2.0**-attempt
    rate, final = chosen.learning_rate * part, this.settings.subnet_final_rate * part
    schedule = factory.Schedule(chosen.subnet_epochs, rate, chosen.warmup_epochs, final)
    return factory.recipe(chosen, this.dataset, schedule)


def _sum(one: stage.Progress, other: stage.Progress) -> stage.Progress:
    """Of trainings one after another."""
    return stage.Progress(
        epochs=max(one.epochs, other.epochs),
        seconds=one.seconds + other.seconds,
        device_seconds=one.device_seconds + other.device_seconds,
        compile_seconds=one.compile_seconds + other.compile_seconds,
    )


class Watcher:
    """Looks for members whose numbers are no numbers any more.

    Before a checkpoint with such numbers is written, the member's part of the one before is put
    aside for its restart.

    * `found`: the steps at which they were seen first.
    """

    def __init__(self, members: Sequence[int], keeper: Keeper, attempt: int):
        self.found: dict[int, int] = {}
        self._members = tuple(members)
        self._keeper = keeper
        self._attempt = attempt
        self._aside: set[int] = set()

    def record(self) -> dict[str, Any]:
        """What a checkpoint has to say of it."""
        return {"members": list(self._members), "diverged": [*self.found.items()]}

    def remember(self, record: dict[str, Any]) -> None:
        """Take up what a checkpoint says."""
        self.found = dict(record["diverged"])
        self._aside |= {*self.found}

    def put_aside(self, kept: Kept, tree: training.TrainState) -> None:
        """Before a state is saved: keep the good past of those that have none in it any more."""
        finite = _are_finite(tree.variables)
        for place, k in enumerate(self._members):
            if k not in self._aside and not finite[place]:
                self._aside.add(k)
                self._keep_past(kept, tree, place, k)

    def after_epoch(self, tree: training.TrainState, done: training.Epoch) -> None:
        """Report who has diverged in it; stop if that is what is asked for."""
        end, finite = training.steps_done(tree), _are_finite(tree.variables)
        for place, k in enumerate(self._members):
            lost = ~np.isfinite(done.losses[:, place])
            if k in self.found or not (lost.any() or not finite[place]):
                continue
            first = int(lost.argmax()) + 1 if lost.any() else len(lost)
            self.found[k] = end - len(lost) + first
            self._keeper.voice.say(f"sub-network {k} diverged at step {self.found[k]}")
        self.refuse()

    def refuse(self) -> None:
        """Stop, if any has diverged and that is what is asked for."""
        if self.found and self._keeper.how.on_diverged == "stop":
            places = ", ".join(f"sub-network {k} at step {s}" for k, s in self.found.items())
            raise Diverged(
                f"{places}: the loss is no number any more. The same command with --on-diverged "
                "restart (half the rate from the last good checkpoint) or --on-diverged drop (go "
                "on without) continues; a lower --learning-rate begins another run"
            )

    def _keep_past(self, kept: Kept, tree: training.TrainState, place: int, k: int) -> None:
        good = kept.before()
        if good is None:
            return  # it starts from the beginning
        past = take_entries(good.into(tree), jnp.array([place]))
        if not _are_finite(past.variables)[0]:
            return
        folder = self._keeper.workdir / FOLDER / _restart(k, self._attempt + 1)
        progress = stage.Progress(epochs=good.record["progress"]["epochs"])
        record = good.record | {
            "finished": False,
            "metrics": None,
            "progress": progress._asdict(),
            "members": [k],
            "diverged": [],
        }
        with Checkpoints(folder, keep=self._keeper.how.keep) as aside:
            aside.save(good.step, past, record)


def _are_finite(variables: PyTree) -> Bool[np.ndarray, " members"]:
    """Whose variables are numbers throughout."""
    return np.asarray(_finite_entries(variables))


@jax.jit
def _finite_entries(tree: PyTree) -> Bool[Array, " members"]:
    floats = (leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    finite = [jnp.isfinite(leaf.reshape(len(leaf), -1)).all(axis=1) for leaf in floats]
    return jnp.stack(finite).all(axis=0)
