"""A run in several processes: joined, agreed on its settings, ended together."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from experiments.run import startup
from experiments.settings.flags import Machines, Settings

LOST_PEER = 6
STOPPED = 128  # plus the signal's number: 130 for SIGINT, 143 for SIGTERM
_AHEAD = 4  # steps, more than one process can be ahead of another one in
_SAVE_SECONDS = 15  # for the others to save after a signal
_REPORT_SECONDS = 3600  # in which process 0 writes the report, and the others wait


class JoinError(Exception):
    """The processes did not come together; the message says why and what to do."""


def join(settings: Settings, say: Callable[[str], object]) -> bool:
    """Start `jax.distributed` if the settings ask for several processes.

    Raises:
      JoinError: the others do not come in time, or they cannot share a batch equally.
    """
    chosen, subnets = settings.machines, settings.subnets
    if not chosen.several:
        return False
    startup.check_environment()
    # As many host devices as this process has sub-networks: they are trained side by side.
    startup.start_jax(max(1, subnets // (chosen.processes or subnets)))
    import jax

    if chosen.processes == 1:
        return False
    from dcjax import training

    late = (
        f"the processes did not come together within {chosen.join_seconds} s (--join-seconds). All "
        f"of them need the same --coordinator {chosen.coordinator} and --processes "
        f"{chosen.processes}, and each another --process from 0 on"
    )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself, and only wait for the program to ask.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with training.ending_with_peers(lambda _: say(late), LOST_PEER):
            jax.distributed.initialize(
                chosen.coordinator,
                chosen.processes,
                chosen.process,
                initialization_timeout=chosen.join_seconds,
                heartbeat_timeout_seconds=chosen.heartbeat_seconds,
                shutdown_timeout_seconds=_REPORT_SECONDS,
            )
    except ValueError as error:  # JAX finds no cluster
        raise JoinError(
            f"--distributed: JAX finds no Slurm, MPI or Kubernetes job here ({_line(error)}); give "
            "--coordinator HOST:PORT --processes N --process I"
        ) from None
    except Exception as error:  # of several types
        raise JoinError(f"{late}. JAX says: {_line(error)}") from None
    if (size := settings.training.batch_size) % jax.process_count():
        raise JoinError(
            f"--batch-size {size}: expected a multiple of {jax.process_count()}, the number of "
            "processes, which share each batch"
        )
    return True


def number(chosen: Machines) -> int:
    """Return this process's number; 0 speaks and writes for all."""
    if not chosen.several:
        return 0
    import jax

    return jax.process_index()


def agreed(chosen: Machines, make: Callable[[], Any]) -> Any:
    """Return in every process what process 0 makes: JSON values. The others do not call `make`."""
    if not chosen.several:
        return make()
    from dcjax import training

    made = json.dumps(make()).encode() if number(chosen) == 0 else b""
    return json.loads(training.from_first(made))


def differences(chosen: Machines, mine: Mapping[str, Any]) -> list[str]:
    """Return the values that differ from process 0's, a line each with both."""
    there = agreed(chosen, lambda: dict(mine))
    here = json.loads(json.dumps(mine))
    return [
        f"{name}: {there.get(name)} in process 0, {here.get(name)} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]


def signal_after(asked: int | None, stage: str | None, step: int) -> int | None:
    """Return the signal after whose arrival, in any process, this one ends with this step.

    Processes that train apart end at once. In a common stage they need the same step: process 0
    chooses one that nobody has reached, because steps of different processes wait for each other
    two apart, and copies at their averages.

    Args:
      asked: the signal that this process has got, or None.
      stage: the common stage, None for sub-networks.
      step: the step that has been begun.
    """
    import jax

    from dcjax import training

    if jax.process_count() == 1:
        return asked
    if asked is not None:
        training.post("signal", str(asked))
    if (signal := training.posted("signal")) is None:
        return None
    if stage is None:
        return int(signal)
    last = training.posted(f"last step of {stage}")
    if last is None and jax.process_index() == 0:
        training.post(f"last step of {stage}", str(step + _AHEAD))
    return int(signal) if last is not None and step >= int(last) else None


def together(body: Callable[[], int], say: Callable[[str], object]) -> int:
    """Run the body in joined processes; return its exit code, or end the process with it."""
    import jax

    from dcjax import training

    with training.ending_with_peers(say, LOST_PEER):
        if code := body():
            if code > STOPPED:
                _wait_for_the_others()
            training.leave(code)
    jax.distributed.shutdown()
    return 0


def _wait_for_the_others() -> None:
    """Wait until process 0 has saved and the others have left, but not for ever.

    A process that leaves breaks the collectives that another one is still in, and JAX ends the
    others when process 0 is gone. One may not know of the signal.
    """
    import jax

    from dcjax import training

    number = jax.process_index()
    awaited = [f"{each} has left" for each in range(1, jax.process_count())]
    if number == 0:
        training.post("0 has saved", "")
    else:
        awaited = ["0 has saved"]
    until = time.monotonic() + _SAVE_SECONDS
    while time.monotonic() < until and None in map(training.posted, awaited):
        time.sleep(0.1)
    training.post(f"{number} has left", "")


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
