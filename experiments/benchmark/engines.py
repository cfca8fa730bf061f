"""How one device runs several sub-networks: unrolled, vmapped, in a loop; by steps or by epochs."""

from typing import Any, get_args

import jax

from dcjax import training
from experiments.benchmark import steps

FORMS = get_args(training.Engine.__annotations__["members"])
ENGINES = {
    f"{form}, {'epoch' if whole else 'step'}": training.Engine(form, whole)
    for form in FORMS
    for whole in (False, True)
}


def engine_row(depth: int, width: int, subnets: int, dtype: str, runs: int) -> dict[str, Any]:
    """The step of K sub-networks on one device, by every engine.

    On an accelerator by whole epochs only: compiling takes most of a row's time there.
    """
    network = steps.resnet(depth, width * subnets, dtype=dtype)
    one = jax.devices()[:1]
    made = {
        name: steps.side_by_side(network, subnets, engine=engine, devices=one)
        for name, engine in ENGINES.items()
        if one[0].platform == "cpu" or engine.whole_epochs
    }
    return steps.step_times(made, runs)
