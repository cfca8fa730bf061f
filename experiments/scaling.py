"""Bytes and seconds of a step in two processes, over links of several speeds.

    python -m experiments.scaling --width 32 --rates 0 1000 100

Each process runs in a network namespace of its own (Linux, as root); a token bucket limits the link
between them to so many Mbit/s, 0 for no limit. The bytes are those that the kernel counts at the
link. It prints a table, and the model `seconds = seconds without limit + bytes / speed` beside it.
"""

import contextlib
import dataclasses
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro

WORKER = "--worker"
HOSTS = ("10.77.0.1", "10.77.0.2")
LINK = "eth0"
SUBNETS = 4


@dataclasses.dataclass(frozen=True)
class Measure:
    """Measure a step of each kind of training in two processes."""

    depth: int = 8
    """Layers of the ResNet."""
    width: int = 32
    """Its width."""
    batch_size: int = 128
    """Images a step, of both processes together."""
    steps: int = 5
    """Steps that are measured, after two that are not."""
    rates: tuple[int, ...] = (0, 1000, 100)
    """Speeds of the link in Mbit/s each way; 0 for no limit."""


def main(args: list[str]) -> int:
    """Measure, or be one of the two processes."""
    if args[:1] == [WORKER]:
        worker(Measure(**json.loads(args[1])), int(args[2]), args[3])
        return 0
    chosen = tyro.cli(Measure, args=args)
    rows = []
    for rate in chosen.rates:
        with _linked(rate):
            rows.append((rate, _measured(chosen, port=29500 + len(rows))))
    print(table(rows))
    return 0


@contextlib.contextmanager
def _linked(rate: int) -> Iterator[None]:
    """Make two network namespaces with a link between them, limited to a rate in Mbit/s."""
    names = [f"dcjax{number}" for number in (0, 1)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", LINK, "netns", names[0], "type", "veth", "peer", LINK, "netns", names[1])
        for name, host in zip(names, HOSTS, strict=True):
            # gloo takes the address to which the machine's name leads.
            hosts = Path("/etc/netns", name, "hosts")
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(f"127.0.0.1 localhost\n{host} {socket.gethostname()}\n")
            _ip("-n", name, "address", "add", f"{host}/24", "dev", LINK)
            for link in (LINK, "lo"):
                _ip("-n", name, "link", "set", link, "up")
            if rate:
                limit = ("rate", f"{rate}mbit", "burst", "256kb", "latency", "200ms")
                _run("tc", "-n", name, "qdisc", "add", "dev", LINK, "root", "tbf", *limit)
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


def _measured(chosen: Measure, port: int) -> dict[str, dict[str, float]]:
    """Return what process 0 measured: seconds and sent bytes by the kind of step."""
    text = json.dumps(dataclasses.asdict(chosen))
    started = [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", f"dcjax{number}"),
                *(sys.executable, "-m", "experiments.scaling"),
                *(WORKER, text, str(number), f"{HOSTS[0]}:{port}"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=1800)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise SystemExit("a process failed; its message is above")
    return json.loads(said[0].splitlines()[-1])


def worker(chosen: Measure, number: int, coordinator: str) -> None:
    """Time steps of each kind, and print the result as JSON."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, 2, number)
    import numpy as np

    import dcjax
    from dcjax import training

    rng = np.random.default_rng(0)
    examples = 2 * chosen.batch_size
    images = rng.integers(0, 256, (examples, 32, 32, 3)).astype(np.uint8)
    labels = rng.integers(0, 10, examples)
    dcjax.native.build()
    network = dcjax.models.ResNet(
        chosen.depth, chosen.width, 10, conv_general_dilated=dcjax.native.conv_general_dilated
    )
    x, key = images[:2].astype(np.float32), jax.random.key(0)
    variables, members = network.init(key, x), training.local_members(SUBNETS)
    stacked = jax.tree.map(
        lambda leaf: leaf[np.array(members)], dcjax.init(network, SUBNETS, key, x)
    )
    recipe = training.Recipe(training.sgd(0.1, 100), batch_size=chosen.batch_size)

    def timed(take: Any, state: Any) -> dict[str, float]:
        for _ in range(2):
            state = jax.block_until_ready(take(state))
        sent, started = _sent(), time.perf_counter()
        for _ in range(chosen.steps):
            state = jax.block_until_ready(take(state))
        seconds = time.perf_counter() - started
        return {"seconds": seconds / chosen.steps, "bytes": (_sent() - sent) / chosen.steps}

    def step_of(trainer: training.Trainer, initial: Any) -> dict[str, float]:
        data, state = trainer.place(images, labels), trainer.start(initial, key)
        trainer, _ = training.compile(trainer, state, data)
        order = trainer.shuffle(state, data)
        return timed(lambda state: trainer.step(state, data, order)[0], state)

    narrow = dcjax.decompose(network, SUBNETS)
    apart: Any = training.rarely_averaged(network, None, recipe, every=1)
    found = {
        "a step of the sub-networks": step_of(
            training.side_by_side(narrow, None, recipe, SUBNETS, members=members), stacked
        ),
        "gathering them, once": timed(lambda _: training.gather_members(stacked, SUBNETS), stacked),
        "a step, data-parallel": step_of(training.data_parallel(network, None, recipe), variables),
        "a step, rarely averaged": step_of(apart, variables),
        "an average of the copies": timed(
            lambda state: apart.average(1, state), apart.start(variables, key)
        ),
    }
    jax.distributed.shutdown()
    print(json.dumps(found), flush=True)


def _sent() -> int:
    return int(Path(f"/sys/class/net/{LINK}/statistics/tx_bytes").read_text())


def _ip(*args: str) -> None:
    _run("ip", *args)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def table(rows: list[tuple[int, dict[str, Any]]]) -> str:
    """Return the measurements and the model's predictions as a Markdown table."""
    free = next((found for rate, found in rows if not rate), rows[0][1])
    lines = [
        "| link | what | sent by a process | seconds | model |",
        "| --- | --- | --- | --- | --- |",
    ]
    for rate, found in rows:
        for kind, each in found.items():
            model = free[kind]["seconds"] + (8e-6 * each["bytes"] / rate if rate else 0)
            speed = f"{rate} Mbit/s" if rate else "no limit"
            lines.append(
                f"| {speed} | {kind} | {each['bytes'] / 1e6:.2f} MB | {each['seconds']:.3f} | "
                f"{model:.3f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
