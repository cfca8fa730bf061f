"""One of the processes: times steps of each kind whenever it reads a line."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from experiments.scaling.links import sent

SUBNETS = 4
SUBNET, GATHER, TOGETHER, APART, AVERAGE = KINDS = (
    "a step of a sub-network",
    "gathering the sub-networks, once",
    "a step, data-parallel",
    "a step between two averages",
    "an average of the copies",
)


def work(width: int, depth: int, images: int, steps: int, count: int, coordinator: str) -> None:
    """Join the others, compile, and answer each line with times and bytes, as JSON.

    Args:
      width: of the ResNet; its sub-networks have a quarter of it.
      depth: of the ResNet.
      images: a step and process, of the global network; a sub-network gets four times as many.
      steps: timed at each line, after one that is not.
      count: the number of processes; this one's is the last argument of the command line.
      coordinator: where process 0 is.
    """
    number = int(sys.argv[-1])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, count, number)
    from dcjax import training

    kinds = dict(_kinds(width, depth, images, count, number))
    for _ in sys.stdin:
        found = {}
        for kind, take in kinds.items():
            training.from_first(b"")  # they begin together
            take()
            before, seconds, busy = sent(), [], []
            for _ in range(steps):
                started = time.perf_counter(), time.process_time()
                take()
                seconds.append(round(time.perf_counter() - started[0], 4))
                busy.append(round(time.process_time() - started[1], 4))
            bytes_sent = round((sent() - before) / steps)
            found[kind] = {"bytes": bytes_sent, "seconds": seconds, "cpu_seconds": busy}
        print(json.dumps(found), flush=True)


def _kinds(
    width: int, depth: int, images: int, count: int, number: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the kinds of steps, compiled, by their names."""
    import jax
    import numpy as np

    import dcjax
    from dcjax import training

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images * SUBNETS * count, 32, 32, 3)).astype(np.uint8)
    labels = rng.integers(0, 10, len(pixels))
    dcjax.native.build()
    native = dcjax.native.conv_general_dilated
    network = dcjax.models.ResNet(depth, width, 10, conv_general_dilated=native)
    x, key = pixels[:2].astype(np.float32), jax.random.key(0)
    variables, stacked = network.init(key, x), dcjax.init(network, SUBNETS, key, x)
    sgd = training.sgd(0.1, 100)

    def steps_of(trainer: training.Trainer, initial: Any) -> Callable[[], None]:
        data, state = trainer.place(pixels, labels), trainer.start(initial, key)
        compiled, _ = training.compile(trainer, state, data)
        order = compiled.shuffle(state, data)

        def take() -> None:
            nonlocal state
            state = jax.block_until_ready(compiled.step(state, data, order)[0])

        return take

    def entries(members: tuple[int, ...]) -> Any:
        return jax.tree.map(lambda leaf: leaf[np.array(members, int)], stacked)

    narrow, mine = dcjax.decompose(network, SUBNETS), (number % SUBNETS,)
    whole = training.Recipe(sgd, batch_size=images * SUBNETS)
    part = training.Recipe(sgd, batch_size=images * count)
    alone = training.side_by_side(narrow, None, whole, SUBNETS, members=mine)
    yield SUBNET, steps_of(alone, entries(mine))
    own = entries(training.local_members(SUBNETS))
    yield GATHER, lambda: jax.block_until_ready(training.gather_members(own, SUBNETS))
    yield TOGETHER, steps_of(training.data_parallel(network, None, part), variables)
    apart: Any = training.rarely_averaged(network, None, part, every=1)
    yield APART, steps_of(apart, variables)
    copies = apart.start(variables, key)

    def average() -> None:
        nonlocal copies
        copies = jax.block_until_ready(apart.average(1, copies))

    yield AVERAGE, average


if __name__ == "__main__":
    work(**json.loads(sys.argv[1]))
