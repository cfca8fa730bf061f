"""One process of a job: `worker.py PORT COUNT NUMBER TASK FOLDER`; results go to FOLDER."""

import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dcjax
from dcjax import training
from dcjax.checkpoints import Checkpoints
from tests.training import small


def main(port: str, count: str, number: str, task: str, folder: str) -> None:
    if int(count) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(number))
    with training.ending_with_peers():
        globals()[task](Path(folder), int(number))
    jax.distributed.shutdown()


def method(folder: Path, here: int) -> None:
    """Run both stages; save what each process has at their ends."""
    subnets = small.train_subnets(training.local_members(small.SUBNETS))
    whole = training.gather_members(subnets, small.SUBNETS)
    np.savez(folder / f"subnets{here}.npz", **small.flat(whole))
    np.savez(folder / f"finetuned{here}.npz", **small.finetune(small.global_trainer(), whole))
    np.savez(folder / f"averaged{here}.npz", **small.train_rarely_averaged())
    if jax.process_count() > 1:
        _predict_alone(here)
        _stage_1_program()
        _checkpoints(folder, here)
        _refusals()


def _predict_alone(here: int) -> None:
    """Predict in one process only, without waiting for the others."""
    if here == 0:
        weights = {"finetuned": dcjax.compose(small.initial())}
        samples = dcjax.samples.replicate(small.SUBNETS)
        model = dcjax.Model(small.Net(), weights, samples, shape=(8, 8, 3), dtype="uint8")
        assert model.predict(small.images(3)[0]).shape == (3, 3)


def _stage_1_program() -> None:
    """Print which collectives the step of this process's sub-networks has."""
    members = training.local_members(small.SUBNETS)
    narrow = dcjax.decompose(small.Net(), small.SUBNETS)
    trainer = training.side_by_side(narrow, None, small.recipe(), small.SUBNETS, members=members)
    own = jax.tree.map(lambda leaf: leaf[np.array(members)], small.initial())
    state, data = trainer.start(own, jax.random.key(2)), trainer.place(*small.images(50))
    step: Any = trainer.step
    program = step.lower(state, data, trainer.shuffle(state, data)).compile().as_text()
    words = ("all-reduce", "all-gather", "all-to-all", "collective", "send(", "recv(")
    print(f"collectives among sub-networks: {[word for word in words if word in program]}")


def _checkpoints(folder: Path, here: int) -> None:
    """Save in each process by itself, then once for all; nobody waits for another."""
    with Checkpoints(folder / f"own{here}", writer=here) as own:
        if here == 0:  # alone
            own.save(1, {"w": np.full(3, here)})
    if here == 0:
        assert own.load().into({"w": np.zeros(3, int)})["w"].tolist() == [here] * 3
    with Checkpoints(folder / f"common{here}", writer=0) as common:
        common.save(2, {"w": np.ones(3)})
    assert common.steps() == ([2] if here == 0 else [])


def _refusals() -> None:
    here, count = jax.process_index(), jax.process_count()
    trainer = small.global_trainer()
    images, labels = small.images(50)
    elsewhere = [d for d in jax.devices() if d.process_index != here]
    for name, wrong in {
        "data": lambda: trainer.place(images + np.uint8(here), labels),
        "batch": lambda: training.data_parallel(
            small.Net(), None, small.recipe()._replace(batch_size=8 * count + 1)
        ),
        "foreign": lambda: training.side_by_side(
            small.Net(2), None, small.recipe(), 4, devices=elsewhere
        ),
        "not taking part": lambda: small.global_trainer(devices=elsewhere[:1]),
        "members": lambda: training.gather_members({"w": np.zeros(99)}, 4),
        "writer": lambda: Checkpoints("unused"),
        "folder": lambda: dcjax.transfer(
            small.Net(), (images, labels), (images, labels), progress=False, folder="unused"
        ),
    }.items():
        try:
            wrong()
            print(f"{name}: not refused")
        except ValueError as error:
            print(f"{name}: {error}")


def forever(folder: Path, here: int) -> None:
    """Fine-tune until a signal ends it; say when steps are being done."""
    trainer = small.global_trainer()
    state = trainer.start(dcjax.compose(small.initial()), jax.random.key(3))
    data = trainer.place(*small.images(50))

    def on_step(step: int, state: training.TrainState) -> None:
        if step == 20:
            (folder / f"{here}.pid").write_text(str(os.getpid()))

    training.fit(trainer, state, data, 10**9, on_step=on_step)


if __name__ == "__main__":
    main(*sys.argv[1:])
