"""Composed optimiser states, against the states that the global network's optimiser reaches."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcjax
from dcjax import training
from tests.networks import ImageConcat, LeNet, WideGroups
from tests.test_contract import images, random_stacked


def kernels(params):
    def is_kernel(path, _):
        return "kernel" in jax.tree_util.keystr(path)

    return jax.tree_util.tree_map_with_path(is_kernel, params)


WEIGHTS = jnp.array([0.5, 0.3, 0.2])
OPTIMIZERS = {
    "momentum": optax.sgd(0.0, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.0),
    "amsgrad": optax.amsgrad(0.0),
    "adagrad": optax.adagrad(0.0, initial_accumulator_value=0.0),
    "rmsprop, accumulated": optax.MultiSteps(optax.rmsprop(0.0), 2).gradient_transformation(),
    "masked": optax.masked(optax.adam(0.0), kernels),
    "scheduled": optax.chain(optax.clip(1e9), optax.lion(optax.constant_schedule(0.0))),
}
SECOND_MOMENTS = ("adam", "amsgrad", "adagrad", "rmsprop, accumulated", "masked")


def cost(network, params, x, labels):
    logits = network.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.cache
def equal_subnetworks(network, subnets):
    """Return K equal sub-networks, and a function for theirs and the composed gradients."""
    drawn = random_stacked(network, subnets, images((1, 8, 8, 3)))["params"]
    equal = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), drawn)
    subnet = dcjax.decompose(network, subnets)
    batches = [(images((4, 8, 8, 3)) * (i + 1), np.array([0, 1, 2, i])) for i in range(4)]

    @jax.jit
    def own(x, labels):
        return jax.grad(lambda s: sum(cost(subnet, params, x, labels) for params in s))(equal)

    @jax.jit
    def whole(composed, x, labels):
        return jax.grad(lambda params: cost(network, params, x, labels))(composed)

    def gradients(weights=None):
        composed = dcjax.compose(equal, weights=weights)
        return composed, [(own(*batch), whole(composed, *batch)) for batch in batches]

    return equal, gradients


def states_after_batches(network, optimizer, subnets, weights=None):
    """Return the sub-networks' state and the global network's, at constant parameters."""
    equal, gradients = equal_subnetworks(network, subnets)
    composed, steps = gradients(weights)
    own, whole = optimizer.init(equal), optimizer.init(composed)
    update = jax.jit(optimizer.update)
    for mine, theirs in steps:
        own, whole = update(mine, own, equal)[1], update(theirs, whole, composed)[1]
    return own, whole, equal


def diagonal(tree, layout):
    """Return a global tree of the parameters' shape with off-diagonal blocks of zero."""
    return dcjax.compose(dcjax.extract(tree, like=layout))


def is_second_moment(path):
    return any(field in jax.tree_util.keystr(path) for field in (".nu", "sum_of_squares"))


def composed_and_global(optimizer):
    """Yield the path of each array of the state, its composed and its global value."""
    own, whole, equal = states_after_batches(LeNet(6), optimizer, 3)
    composed = dcjax.compose_opt_state(optimizer, own, equal)
    chex.assert_trees_all_equal_shapes_and_dtypes(composed, whole)
    leaves = zip(jax.tree_util.tree_leaves_with_path(composed), jax.tree.leaves(whole), strict=True)
    for (path, got), expected in leaves:
        yield path, np.asarray(got), np.asarray(expected)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adagrad"])
def test_first_moments_of_equal_subnetworks_are_the_global_state_on_the_diagonal(name):
    compared = 0
    for path, got, expected in composed_and_global(OPTIMIZERS[name]):
        if is_second_moment(path):
            continue
        on, scale = got != 0, np.abs(expected).max() + 1e-30
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(got[on], expected[on], atol=1e-4 * scale, err_msg=where)
        assert on.any() or not expected.any(), where
        compared += on.sum()
    assert compared


@pytest.mark.parametrize("name", SECOND_MOMENTS)
def test_second_moments_of_equal_subnetworks_are_the_global_state_off_the_diagonal_too(name):
    compared = 0
    for path, got, expected in composed_and_global(OPTIMIZERS[name]):
        if is_second_moment(path):
            scale = np.abs(expected).max() + 1e-30
            where = jax.tree_util.keystr(path)
            np.testing.assert_allclose(got, expected, atol=1e-4 * scale, rtol=1e-4, err_msg=where)
            compared += 1
    assert compared


@pytest.mark.parametrize("network", [WideGroups(6), ImageConcat(6)])
def test_weighted_heads_scale_each_body_by_its_weight(network):
    optimizer = optax.trace(0.9)
    own, whole, equal = states_after_batches(network, optimizer, 3, WEIGHTS)
    composed = dcjax.compose_opt_state(optimizer, own, equal, weights=WEIGHTS)
    layout = equal.layout
    on = jax.tree.map(lambda leaf: leaf != 0, composed.trace)
    expected = jax.tree.map(lambda leaf, here: jnp.where(here, leaf, 0), whole.trace, on)
    chex.assert_trees_all_close(composed.trace, expected, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(diagonal(composed.trace, layout), composed.trace, rtol=1e-5)


def test_the_state_of_a_diverged_sub_network_with_weight_0_is_left_out():
    network, weights = LeNet(6), jnp.array([0.75, 0.0, 0.25])
    params = random_stacked(network, 3, images((1, 8, 8, 3)))["params"]
    optimizer = optax.adam(0.1)
    count, *rest = optimizer.init(params)
    sick = jax.tree.map(lambda leaf: (leaf + 1.0).at[1].set(jnp.nan), (count.mu, count.nu))
    zero = jax.tree.map(lambda leaf: leaf.at[1].set(0.0), sick)
    composed, expected = (
        dcjax.compose_opt_state(
            optimizer, (count._replace(mu=mu, nu=nu), *rest), params, weights=weights
        )
        for mu, nu in (sick, zero)
    )
    chex.assert_tree_all_finite(composed)
    chex.assert_trees_all_equal(composed, expected)


def test_adam_s_first_step_off_the_diagonal_is_no_larger_than_the_rate():
    """With zero second moments there it would be 3.2 times the rate."""
    network, optimizer = LeNet(6), optax.adam(1.0)
    stacked = random_stacked(network, 3, images((1, 8, 8, 3)))["params"]
    subnet, state = dcjax.decompose(network, 3), optimizer.init(stacked)
    x, labels = images((16, 8, 8, 3)), np.arange(16) % 5
    gradient = jax.jit(jax.grad(lambda s: sum(cost(subnet, p, x, labels) for p in s)))(stacked)
    # What Adam comes to when the gradient has been this one for long.
    squares = jax.tree.map(jnp.square, gradient)
    state = (state[0]._replace(count=jnp.int32(10**6), mu=gradient, nu=squares), *state[1:])
    composed = dcjax.compose(stacked)
    gradient = jax.jit(jax.grad(lambda p: cost(network, p, x, labels)))(composed)

    def largest(state):
        change = optimizer.update(gradient, state)[0]["Conv_1"]["kernel"]
        return np.abs(np.where(composed["Conv_1"]["kernel"] == 0, change, 0)).max()

    filled = dcjax.compose_opt_state(optimizer, state, stacked)
    nu = jax.tree.map(lambda n, p: jnp.where(p == 0, 0, n), filled[0].nu, composed)
    unfilled = (filled[0]._replace(nu=nu), *filled[1:])
    assert largest(unfilled) > 3
    assert largest(filled) < 1.5


def small_params():
    return random_stacked(LeNet(4), 2, images((1, 8, 8, 3)))["params"]


@pytest.mark.parametrize("each", [False, True], ids=["one state", "a state for each"])
def test_structure_shapes_and_dtypes_are_the_optimizer_s_own(each):
    """Counts and keys too, which have the leading axis K if every sub-network has a state."""
    params = small_params()
    optimizer = optax.chain(
        optax.inject_hyperparams(optax.adamw)(0.5),
        optax.add_noise(0.1, 0.5, key=jax.random.key(0)),
    )
    init = jax.vmap(optimizer.init) if each else optimizer.init
    composed = dcjax.compose_opt_state(optimizer, init(params), params)
    expected = optimizer.init(dcjax.compose(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(composed, expected)
    assert composed[0].hyperparams["learning_rate"] == 0.5


def test_the_state_of_side_by_side_training():
    params = small_params()
    recipe = training.Recipe(training.sgd(0.1, 10), batch_size=4, train_kwargs={}, eval_kwargs={})
    subnet = dcjax.decompose(LeNet(4), 2)
    trainer = training.side_by_side(subnet, dcjax.samples.replicate(2), recipe, 2)
    variables = dcjax.Stacked(
        {"params": params.tree}, dcjax.layout(LeNet(4), 2, images((1, 8, 8, 3)))
    )
    state = trainer.to_host(trainer.start(variables, jax.random.key(0)))
    composed = dcjax.compose_opt_state(recipe.optimizer, state.opt_state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        composed, recipe.optimizer.init(dcjax.compose(params))
    )


@pytest.mark.parametrize(
    ("optimizer", "powers"),
    [
        (optax.adam(0.1), {1, 2}),
        (optax.adamax(0.1), {1}),  # its second moment is a maximum norm
        (optax.chain(optax.scale_by_sign(), optax.trace(0.9)), {0}),
        (optax.chain(optax.scale_by_adam(), optax.trace(0.9)), {0, 1, 2}),
    ],
    ids=["adam", "adamax", "sign", "adam, trace"],
)
def test_powers_are_measured_and_not_guessed_from_names(optimizer, powers):
    """With K = 2 an array of ones becomes 2^-p in the body."""
    params = small_params()
    ones = jax.tree.map(jnp.ones_like, optimizer.init(params))
    composed = dcjax.compose_opt_state(optimizer, ones, params)
    values = {
        float(np.unique(leaf).item())
        for path, leaf in jax.tree_util.tree_leaves_with_path(composed)
        if "['Conv_0']['bias']" in jax.tree_util.keystr(path)
    }
    assert values == {0.5**power for power in powers}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (optax.adagrad(0.1), "does not start from zero"),
        (optax.contrib.schedule_free_sgd(0.1), "does not start from zero"),
        (optax.chain(optax.clip_by_global_norm(0.5), optax.trace(0.9)), "a power of"),
        (optax.lars(0.1), "a power of"),
        (optax.MultiSteps(optax.adam(0.1), 32), "stays zero"),
        (optax.chain(optax.clip_by_global_norm(0.01), optax.trace(0.9)), "a power of"),
        (optax.chain(optax.clip(5e-3), optax.trace(0.9)), "a power of"),
        (optax.chain(optax.normalize_by_update_norm(), optax.trace(0.9)), "a power of|of other"),
        (optax.chain(optax.clip_by_block_rms(1e-6), optax.trace(0.9)), "of other"),
        (optax.rmsprop(0.1, momentum=0.9), "a power of"),  # below 1e-4, where its epsilon counts
        (optax.novograd(0.1), "of other|belongs to a parameter"),
        (optax.adafactor(0.1, momentum=0.9), "a power of"),
    ],
)
def test_arrays_that_are_not_powers_of_the_gradients_are_refused(optimizer, words):
    params = small_params()
    with pytest.raises(ValueError, match=words) as error:
        dcjax.compose_opt_state(optimizer, optimizer.init(params), params)
    assert "optimizer.init(dcjax.compose(params))" in str(error.value)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adafactor(0.1),
        optax.adamw(0.1),
        optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9)),
        optax.chain(optax.add_decayed_weights(1e-2), optax.adam(0.1)),
    ],
)
def test_parameters_in_the_update_are_no_hindrance(optimizer):
    params = small_params()
    composed = dcjax.compose_opt_state(optimizer, optimizer.init(params), params)
    expected = optimizer.init(dcjax.compose(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(composed, expected)


def test_dtypes_are_the_optimizer_s_whatever_the_state_s():
    params, optimizer = small_params(), optax.trace(0.9)
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), optimizer.init(params))
    composed = dcjax.compose_opt_state(optimizer, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(composed)} == {jnp.dtype(jnp.float32)}


def test_it_is_pure():
    params, optimizer = small_params(), optax.adam(0.1)
    state = optimizer.init(params)
    jitted = jax.jit(lambda state, params: dcjax.compose_opt_state(optimizer, state, params))
    chex.assert_trees_all_equal(
        jitted(state, params), dcjax.compose_opt_state(optimizer, state, params)
    )


def test_states_are_matched_by_name():
    """A state restored as dictionaries has its parts in alphabetical order."""
    params, optimizer = small_params(), optax.trace(0.9)
    state = optimizer.init(jax.tree.map(jnp.ones_like, params))
    expected = dcjax.compose_opt_state(optimizer, state, params)
    found = dcjax.compose_opt_state(optimizer, {"trace": state.trace.tree}, params)
    chex.assert_trees_all_equal(found, expected)
    for wrong in ({"momentum": state.trace}, [state.trace], None, {1: 0.0, "1": 0.0}):
        with pytest.raises((ValueError, TypeError), match=r"trace|pytree"):
            dcjax.compose_opt_state(optimizer, wrong, params)


def test_arrays_of_another_kind_are_refused():
    params, optimizer = small_params(), optax.trace(0.9)
    state = optimizer.init(params)
    for change, words in [
        (lambda leaf: leaf.astype(jnp.int32), "expected float32, got int32"),
        (lambda leaf: np.full(leaf.shape, "a"), "not an array of numbers"),
    ]:
        with pytest.raises(ValueError, match=words):
            dcjax.compose_opt_state(optimizer, jax.tree.map(change, state), params)
    with pytest.raises(ValueError, match="expected shape"):
        dcjax.compose_opt_state(optimizer, state, jax.tree.map(lambda leaf: leaf[:1], params))


def test_wrong_arguments_are_refused():
    params, adam, trace = small_params(), optax.adam(0.1), optax.trace(0.9)
    with pytest.raises(ValueError, match="arrays"):
        dcjax.compose_opt_state(trace, adam.init(params), params)
    with pytest.raises(ValueError, match="trace/Conv_0/kernel: expected shape"):
        dcjax.compose_opt_state(trace, trace.init(dcjax.compose(params)), params)
    with pytest.raises(ValueError, match="sum to 1"):
        dcjax.compose_opt_state(trace, trace.init(params), params, weights=jnp.array([0.5, 0.6]))
    with pytest.raises(TypeError, match="Stacked"):
        dcjax.compose_opt_state(trace, trace.init(params.tree), params.tree)
    with pytest.raises(TypeError, match="optax"):
        dcjax.compose_opt_state("adam", trace.init(params), params)
