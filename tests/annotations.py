"""dcjax's annotations, shapes among them, checked in every call that returns."""

import inspect

import jaxtyping
from beartype import BeartypeConf, beartype

# An int is a float where a float is asked for, as for pyright.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def on_return(function):
    """Let jaxtyping check arguments and result together, after the call.

    Tests pass wrong arguments on purpose: a call that refuses them raises dcjax's error, not
    beartype's. jaxtyping asks for two functions, one to check the arguments before the call, and
    one for both, which has the result as a further parameter.
    """
    has_result = any(name.startswith("ret") for name in inspect.signature(function).parameters)
    return _check(function) if has_result else function


# Not _tracing: its functions run for every operation of every network, and their checks take more
# time than all others.
_CHECKED = (
    "_bounds",
    "_checks",
    "_compose",
    "_files",
    "_layout",
    "_linen",
    "_pytrees",
    "checkpoints",
    "method",
    "models",
    "native",
    "samples",
    "training",
)


def install() -> None:
    """Check the modules of dcjax that are imported from now on."""
    jaxtyping.install_import_hook(
        [f"dcjax.{module}" for module in _CHECKED], "tests.annotations.on_return"
    )
