"""Random bad input: a public call gives the right result or raises a typed error.

A case is a valid call with up to two of its arguments mutated. Its result is compared with NumPy
written from the definitions. Its error, of dcjax, JAX or NumPy, has a type that says whose fault it
is (`TypeError`, `ValueError` and their like), or it comes from the user's code: networks and
functions of the tests.

The long form draws 10,000 cases, or DCJAX_FUZZ_CASES, and prints their outcomes:

    python -m pytest -m long tests/test_fuzz.py -n auto -rP
"""

import collections
import functools
import json
import math
import pathlib
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dcjax
from dcjax._checks import array_fault
from tests.fuzzing import right
from tests.fuzzing.mutations import JUNK, mutated
from tests.fuzzing.values import (
    BATCH,
    CLASSES,
    F,
    Modular,
    N,
    Normed,
    Tiny,
    head_of,
    is_key,
    layout_for,
    stack_of,
    whole_of,
)
from tests.long import short_and_long

pytestmark = pytest.mark.usefixtures("unchecked")
LIBRARY, HERE = (pathlib.Path(file).parent for file in (dcjax.__file__, __file__))


@pytest.fixture(autouse=True, scope="module")
def whole_tracebacks():
    """Keep JAX's frames in tracebacks: without them its errors would look like ours."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


class Fuzzed(NamedTuple):
    """A public function: a valid call, a check of its result, and its share of all cases."""

    call: Callable[..., Any]
    valid: Callable[[int, np.random.Generator], dict[str, Any]]
    right: Callable[[dict[str, Any], Any], None]
    part: float = 1.0


def valid_compose(subnets, rng):
    stacked, how = stack_of(rng, subnets), rng.integers(5)
    args = {"params": stacked, **head_of(rng, subnets)}
    if how == 1:
        return {**args, "params": stacked.tree, "like": stacked.layout}
    if how == 2:
        return {**args, "params": stacked.tree, "like": stacked, "into": whole_of(rng, subnets)}
    if how == 3:
        return {**args, "into": whole_of(rng, subnets)}
    if how == 4:
        return {**args, "params": {"a": stacked["params"]},
                "into": {"a": whole_of(rng, subnets)["params"]}}  # fmt: skip
    return args


def valid_functions(subnets, rng):
    def tree(width):
        shapes = {"hidden": (F, width), "head": (width, CLASSES), "bias": (CLASSES,)}
        return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}

    def network(params, x):
        hidden = jnp.maximum(x @ params["hidden"], 0)
        return hidden @ params["head"] + params["bias"]

    return {"narrow": network, "wide": network, "narrow_args": [tree(2), BATCH],
            "wide_args": [tree(2 * subnets), BATCH], "subnets": subnets}  # fmt: skip


def valid_bounds(subnets, rng):
    logits = rng.normal(size=(subnets, N, CLASSES)).astype(np.float32)
    return {"logits": logits, "labels": rng.integers(0, CLASSES, N).astype(np.int32),
            **head_of(rng, subnets)}  # fmt: skip


def valid_update(subnets, rng):
    args = {"sums": dcjax.BoundsSums(), **valid_bounds(subnets, rng)}
    return {**args, "mask": rng.integers(0, 2, N) > 0} if rng.integers(2) else args


def valid_finish(subnets, rng):
    logits = valid_bounds(subnets, rng)
    return {"sums": dcjax.bounds_update(dcjax.BoundsSums(), **logits)}


def valid_network(subnets, rng):
    args = {"network": Tiny(4 * subnets), "subnets": subnets, "x": BATCH}
    return {**args, "calls": [{"x": BATCH[:1]}]} if rng.integers(2) else args


def valid_kept(subnets, rng):
    kind, keep = [(Normed, "Dense_1"), (Tiny, "head")][rng.integers(2)]
    return {"network": kind(4 * subnets), "subnets": subnets, "x": BATCH, "keep": [keep]}


def call_grouped(network, subnets, x, keep):
    """Group a network, and find its layout."""
    return dcjax.layout(dcjax.grouped(network, subnets, keep=keep), subnets, x)


def call_narrowable(network, subnets, x, keep):
    """Make a network narrowable, and find its layout."""
    return dcjax.layout(dcjax.narrowable(network, keep=keep), subnets, x)


def valid_modules(subnets, rng):
    return {"narrow": Modular(2), "wide": Modular(2 * subnets), "x": BATCH, "subnets": subnets}


def call_modules(narrow, wide, x, subnets):
    """Make functions of two modules, and find the layout."""
    return dcjax.layout_of_functions(*dcjax.functions_of_modules(narrow, wide, x), subnets)


def valid_fields(subnets, rng):
    return {"network": Tiny(4 * subnets), "subnets": subnets, "fields": ["width"]}


def valid_apply(subnets, rng):
    xs = rng.normal(size=(subnets, N, F)).astype(np.float32)
    return {"subnet": Tiny(2), "stacked": stack_of(rng, subnets), "xs": xs}


def valid_verify(subnets, rng):
    args = {"network": Tiny(2 * subnets), "stacked": stack_of(rng, subnets), "x": BATCH,
            "tolerance": 1e-3, **head_of(rng, subnets)}  # fmt: skip
    return {**args, "calls": [{"x": 2 * BATCH}]} if rng.integers(2) else args


def valid_verify_functions(subnets, rng):
    args = valid_functions(subnets, rng)
    layout = dcjax.layout_of_functions(**args)
    shapes = {path[0]: shape for path, shape in layout.stack_shapes.items()}
    tree = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    del args["subnets"]
    return {**args, "stacked": dcjax.Stacked(tree, layout)}


OPTIMIZERS = [optax.trace(0.9), optax.adam(0.1)]


def valid_state(subnets, rng):
    params, optimizer = stack_of(rng, subnets)["params"], OPTIMIZERS[rng.integers(2)]
    state = jax.tree.map(
        lambda leaf: np.asarray(rng.integers(1, 9, leaf.shape), leaf.dtype),
        jax.eval_shape(optimizer.init, params),
    )
    return {"optimizer": optimizer, "opt_state": state, "params": params,
            **head_of(rng, subnets)}  # fmt: skip


def valid_samples(subnets, rng):
    name = dcjax.samples.NAMES[rng.integers(len(dcjax.samples.NAMES))]
    args = {"name": name, "subnets": {"bands": 4, "channels": 3}.get(name, subnets)}
    return {**args, "x": rng.normal(size=(N, 6, 6, 3)).astype(np.float32)}


def call_samples(name, subnets, x):
    """Make a sample decomposition and call both of its functions."""
    way = dcjax.samples.make(name, subnets)
    way.split(x), way.join(x)
    return way


def valid_transfer(subnets, rng):
    def split():
        labels = rng.integers(0, CLASSES, 8).astype(np.int32)
        return [rng.normal(size=(8, F)).astype(np.float32), labels]

    return {"network": Tiny(4 * subnets), "train": split(), "test": split(), "subnets": subnets,
            "learning_rate": 0.1, "batch_size": 4, "epochs": [1, 1], "seed": 0}  # fmt: skip


class _ReachedError(Exception):
    """The arguments were accepted, and training begins."""


def call_transfer(**args):
    """Call `transfer` up to its first step; return the sub-networks to be trained."""

    def reached(plan, *_):
        raise _ReachedError(plan.variables)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcjax.method._transfer.run_stage", reached)
        try:
            return dcjax.transfer(**args, progress=False)
        except _ReachedError as stop:
            return stop.args[0]


@functools.cache
def saved_config(subnets):
    network = dcjax.models.CNN(width=6, num_classes=3, stages=1)
    samples = dcjax.samples.replicate(subnets)
    rng = np.random.default_rng(0)
    weights = {"subnets": stack_of(rng, subnets), "finetuned": whole_of(rng, subnets)}
    model = dcjax.Model(network, weights, samples, shape=(8, 8, 3), dtype="uint8")
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        return (pathlib.Path(folder) / "config.json").read_text()


def valid_run(subnets, rng):
    return {"config": json.loads(saved_config(subnets)), "network": None, "normalise": None}


def call_load_run(config, network, normalise):
    """Load a run whose config.json is this."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
        return dcjax.load_run(folder, network=network, normalise=normalise)


FUZZED = {
    "compose": Fuzzed(dcjax.compose, valid_compose, right.compose, 2),
    "extract": Fuzzed(
        dcjax.extract,
        lambda k, rng: {
            "variables": whole_of(rng, k), "like": layout_for(k), **head_of(rng, k)
        },
        right.extract,
    ),
    "stack": Fuzzed(
        dcjax.stack,
        lambda k, rng: {"variables": [*stack_of(rng, k)], "like": layout_for(k)},
        right.stack,
    ),
    "unstack": Fuzzed(
        dcjax.unstack, lambda k, rng: {"stacked": stack_of(rng, k)}, right.unstack, 0.5
    ),
    "bounds": Fuzzed(dcjax.bounds, valid_bounds, right.bounds),
    "bounds_update": Fuzzed(dcjax.bounds_update, valid_update, right.update),
    "bounds_finish": Fuzzed(dcjax.bounds_finish, valid_finish, right.finish, 0.5),
    "layout": Fuzzed(dcjax.layout, valid_network, right.layout),
    "grouped": Fuzzed(call_grouped, valid_kept, right.layout, 0.3),
    "narrowable": Fuzzed(call_narrowable, valid_kept, right.layout, 0.3),
    "functions_of_modules": Fuzzed(call_modules, valid_modules, right.modules, 0.3),
    "layout_of_functions": Fuzzed(dcjax.layout_of_functions, valid_functions, right.functions),
    "init": Fuzzed(
        dcjax.init,
        lambda k, rng: {**valid_network(k, rng), "key": jax.random.key(0)},
        right.init,
        0.15,
    ),
    "apply": Fuzzed(dcjax.apply, valid_apply, right.apply),
    "decompose": Fuzzed(dcjax.decompose, valid_fields, right.decompose),
    "verify": Fuzzed(dcjax.verify, valid_verify, right.verify, 0.3),
    "verify_functions": Fuzzed(
        dcjax.verify_functions, valid_verify_functions, right.verify_functions, 0.2
    ),
    "compose_opt_state": Fuzzed(dcjax.compose_opt_state, valid_state, right.state, 0.3),
    "samples": Fuzzed(call_samples, valid_samples, right.samples),
    "transfer": Fuzzed(call_transfer, valid_transfer, right.transfer, 0.1),
    "load_run": Fuzzed(call_load_run, valid_run, right.load_run, 0.3),
}  # fmt: skip


@st.composite
def cases(draw, fuzzed):
    """Draw the arguments of a valid call, up to two of them mutated."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    args = fuzzed.valid(draw(st.integers(1, 3)), rng)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 1, 1, 2]))):
        name = draw(st.sampled_from(sorted(args)))
        with np.errstate(all="ignore"):
            args[name] = (mutated_sums if name == "sums" else mutated)(draw, args[name])
    return args


def mutated_sums(draw, sums):
    if not isinstance(sums, dcjax.BoundsSums) or draw(st.booleans()):
        return draw(st.sampled_from(JUNK))()
    field = draw(st.sampled_from(sums._fields))
    value = getattr(sums, field)
    if array_fault(value) or is_key(value):  # mutated before
        return None
    return sums._replace(**{field: mutated(draw, np.asarray(value))})


def assert_typed(error):
    """Check that the error says what is wrong, or that it comes from the user's code."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [pathlib.Path(frame.f_code.co_filename) for frame in frames]
    entered = [i for i, file in enumerate(files) if LIBRARY in file.parents]
    if entered and any(HERE in file.parents for file in files[entered[0] :]):
        return "the user's"
    if isinstance(error, RuntimeError):  # JAX's error for arrays that were donated
        assert "deleted" in str(error)
        return "deleted"
    assert isinstance(error, (ValueError, TypeError, KeyError, IndexError, OverflowError))
    assert len(str(error)) > 20
    return type(error).__name__


@pytest.mark.parametrize("name", FUZZED)
@short_and_long(500, 10_000, "DCJAX_FUZZ_CASES")
def test_bad_input_gives_the_right_result_or_a_typed_error(name, count):
    fuzzed, outcomes = FUZZED[name], collections.Counter()
    part = math.ceil(count * fuzzed.part / sum(f.part for f in FUZZED.values()))

    @settings(
        deadline=None, max_examples=part, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(cases(fuzzed))
    def check(args):
        try:
            result = fuzzed.call(**args)
        except Exception as error:
            outcomes[assert_typed(error)] += 1
        else:
            fuzzed.right(args, result)
            outcomes["right"] += 1

    check()
    print(f"{name}: {outcomes.total()} cases, {dict(outcomes)}")
