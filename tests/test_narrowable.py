"""Networks whose widths are numbers in their code."""

import copy
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dcjax
from tests.architectures import ActorCritic, HardResNet, HardViT, Recurrent
from tests.exactness import random_variables, relative_error

K = 4
EXACT = 2e-6
IMAGES = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
VECTORS = jax.random.normal(jax.random.key(2), (3, 6, 8))
TOKENS = jax.random.randint(jax.random.key(3), (2, 6), 0, 13)


class Convolutions(nn.Module):
    """Depthwise and grouped convolutions, group norm, a tuple of features, a kept block."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (3, 3), feature_group_count=1)(x)
        x = nn.GroupNorm(num_groups=8)(nn.Conv(32, (3, 3), feature_group_count=32)(x))
        x = nn.relu(nn.Conv(64, (3, 3), feature_group_count=8)(x)).mean((1, 2))
        x = nn.DenseGeneral((8, 3))(x)
        return Head(5, name="head")(nn.DenseGeneral(16, axis=(-2, -1))(x))


class Head(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(x)


class Tagger(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.relu(nn.Conv(32, (3,))(nn.Embed(13, 16)(tokens)))
        return nn.Dense(8, name="tags")(x)


HARD = {
    "ResNet": (HardResNet(), ("head",), IMAGES),
    "PPO": (ActorCritic(), ("Dense_2", "Dense_5"), VECTORS[:, 0]),
    "LSTM, GRU": (Recurrent(), ("head",), VECTORS),
    "groups": (Convolutions(), ("head",), IMAGES),
    "tokens": (Tagger(), ("tags",), TOKENS),
}


@pytest.mark.parametrize("name", HARD)
def test_networks_with_numbers_compose_exactly(name):
    network, keep, x = HARD[name]
    narrowable = dcjax.narrowable(network, keep=keep)
    error, stacked = relative_error(narrowable, K, x)
    assert error <= EXACT
    assert dcjax.verify(narrowable, stacked, x).error <= EXACT
    variables, plain = dcjax.compose(stacked), network.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, plain)
    own = narrowable.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, own, plain)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("first", ["grouped", "narrowable"])
def test_numbers_and_layer_norms_together(scanned, first):
    network = HardViT(scanned)
    if first == "grouped":
        network = dcjax.narrowable(dcjax.grouped(network, K), keep=("head",))
    else:
        network = dcjax.grouped(dcjax.narrowable(network, keep=("head",)), K)
    assert relative_error(network, K, IMAGES)[0] <= EXACT
    assert relative_error(network, 2, IMAGES)[0] <= EXACT


def test_group_norms_of_a_grouped_network_keep_their_number():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.GroupNorm(num_groups=4)(nn.Dense(32)(x))
            return nn.Dense(5)(nn.relu(nn.LayerNorm()(x)))

    for keep in ((), ("GroupNorm_0",)):  # the latter: the number is divided
        grouped = dcjax.grouped(Net(), K, keep=keep)
        assert relative_error(dcjax.narrowable(grouped, keep=("Dense_1",)), K, VECTORS)[0] <= EXACT
    grouped = dcjax.grouped(Net(), 4)
    network = dcjax.narrowable(grouped, keep=("Dense_1",))
    assert relative_error(network, 2, VECTORS)[0] <= EXACT


def test_jitted_modules_do_not_share_traces_of_other_widths():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(16)(nn.relu(x))

    jitted = nn.jit(Inner)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(5)(jitted()(jitted()(x)))

    plain = Net()
    variables = plain.init(jax.random.key(0), VECTORS)
    expected = plain.apply(variables, VECTORS)
    network = dcjax.narrowable(plain, keep=("Dense_0",))
    assert relative_error(network, K, VECTORS)[0] <= EXACT
    np.testing.assert_array_equal(plain.apply(variables, VECTORS), expected)


def test_a_body_in_a_field_and_modules_in_setup():
    class Body(nn.Module):
        def setup(self):
            self.layers = [nn.Dense(32), nn.Dense(x_features := 16)]
            self.features = x_features

        def __call__(self, x):
            return self.layers[1](nn.relu(self.layers[0](x)))

    class Net(nn.Module):
        body: nn.Module

        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(5)(nn.relu(self.body(x)))

    network = dcjax.narrowable(Net(Body()), keep=("Dense_0",))
    assert relative_error(network, K, VECTORS, train=True)[0] <= EXACT


def test_dropout_in_training():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(32)(x)))
            return nn.Dense(5)(x)

    network = dcjax.narrowable(Net(), keep=("Dense_1",))
    stacked = dcjax.init(network, K, jax.random.key(0), VECTORS)
    subnet = dcjax.decompose(network, K)
    rngs = {"dropout": jax.random.key(1)}
    logits = subnet.apply(stacked[0], VECTORS, train=True, rngs=rngs)
    assert logits.shape == (3, 6, 5)

    def loss(variables):
        return subnet.apply(variables, VECTORS, train=True, rngs=rngs).sum()

    assert jax.tree.map(jnp.shape, jax.grad(loss)(stacked[0])) == jax.tree.map(
        jnp.shape, stacked[0]
    )


def test_sub_networks_trained_and_composed():
    network = dcjax.narrowable(ActorCritic(), keep=("Dense_2", "Dense_5"))
    x = VECTORS[:, 0]
    stacked = random_variables(dcjax.init(network, K, jax.random.key(0), x))
    subnet = dcjax.decompose(network, K)

    @jax.jit
    @jax.vmap
    def step(variables):
        loss = lambda v: sum(jnp.square(y).sum() for y in subnet.apply(v, x))  # noqa: E731
        return jax.tree.map(lambda v, g: v - 0.01 * g, variables, jax.grad(loss)(variables))

    trained = step(stacked.tree)
    dcjax.verify(network, dcjax.Stacked(trained, stacked.layout), x, tolerance=EXACT)


def test_what_k_does_not_divide_is_named_and_the_remedy_works():
    with pytest.raises(ValueError, match="4 sub-networks do not divide") as error:
        dcjax.layout(dcjax.narrowable(HardResNet()), K, IMAGES)
    assert "head.features = 6" in str(error.value)
    assert "keep=('head',)" in str(error.value)
    with pytest.raises(ValueError, match="do not divide") as error:
        dcjax.layout(dcjax.narrowable(HardResNet(), keep=("head",)), 3, IMAGES)
    for line in ("Conv_0.features = 16", "ResidualBlock_2/projection.features = 32"):
        assert line in str(error.value)
    subnet = dcjax.decompose(dcjax.narrowable(HardResNet()), K)
    with pytest.raises(ValueError, match=r"head\.features = 6"):
        subnet.init(jax.random.key(0), IMAGES)


def test_a_head_that_is_not_kept_is_refused():
    # Four actions are divided without a remainder: only the results tell.
    network = dcjax.narrowable(ActorCritic(), keep=("Dense_5",))
    with pytest.raises(ValueError, match=r"\(3, 1\) in a sub-network, \(3, 4\) in the global"):
        dcjax.layout(network, K, VECTORS[:, 0])


def test_renewed_variables_may_grow():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(32)(x))
            return nn.Dense(5, name="head")(nn.relu(x))

    calls = [{"train": True, "mutable": ["batch_stats"]}]
    network = dcjax.narrowable(Normed(), keep=("head",))
    assert relative_error(network, K, VECTORS, calls=calls)[0] <= EXACT


def test_an_encoder_without_a_head():
    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(16)(nn.relu(nn.Dense(32)(x)))

    layout = dcjax.layout(dcjax.narrowable(Encoder()), K, VECTORS)
    assert not any(leaf.head for _, leaf in layout.leaves)


@pytest.mark.parametrize("network", [HardResNet(), ActorCritic()])
def test_refusals_of_hard_coded_widths_name_the_remedy(network):
    x = IMAGES if isinstance(network, HardResNet) else VECTORS[:, 0]
    with pytest.raises(TypeError, match=r"dcjax\.narrowable\(network, keep="):
        dcjax.layout(network, K, x)


def test_refusals_of_a_width_that_does_not_scale_name_the_remedy_and_it_works():
    class Half(nn.Module):
        width: int = 16

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(24)(nn.relu(nn.Dense(self.width)(x))))
            return nn.Dense(5)(x)

    with pytest.raises(dcjax.NotSeparableError, match=r"Half/Dense_0|dcjax\.narrowable"):
        dcjax.layout(Half(), K, VECTORS)
    with pytest.raises(dcjax.NotSeparableError) as error:
        dcjax.layout(Half(), K, VECTORS)
    assert "dcjax.narrowable(network, keep=(…))" in str(error.value)
    network = dcjax.narrowable(Half(), keep=("Dense_2",))
    assert relative_error(network, K, VECTORS)[0] <= EXACT


def test_equal_networks_are_equal_and_can_be_copied():
    network = dcjax.narrowable(HardResNet(), keep=("head",))
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert copied == network
        assert copied.narrow(K) == network.narrow(K) == dcjax.decompose(network, K)
    assert dcjax.decompose(network, 1) is network
    assert network != HardResNet()


@pytest.mark.usefixtures("unchecked")
def test_wrong_use():
    with pytest.raises(TypeError, match="instance of a Flax Linen module"):
        dcjax.narrowable(HardResNet)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="keep must be paths"):
        dcjax.narrowable(HardResNet(), keep=(1,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"keep names tail, but .* ResidualBlock_0/Conv_0"):
        dcjax.layout(dcjax.narrowable(HardResNet(), keep=("tail",)), K, IMAGES)


@pytest.mark.parametrize(
    ("multiplier", "expected"), [(1.0, 0.25), ((1.0, 2.0), (0.25, 0.5)), ([2, 8.0], None)]
)
def test_multipliers_of_widths(multiplier, expected):
    class Scaled(nn.Module):
        multiplier: float | tuple | list

        @nn.compact
        def __call__(self, x):
            first = self.multiplier if isinstance(self.multiplier, float) else self.multiplier[0]
            return nn.Dense(5)(nn.relu(nn.Dense(int(32 * first))(x)))

    fields = ("multiplier",)
    if expected is None:
        with pytest.raises(ValueError, match=r"multiplier\[0\]=2 "):
            dcjax.decompose(Scaled(multiplier), K, fields)
        return
    assert dcjax.decompose(Scaled(multiplier), K, fields).multiplier == expected
    assert relative_error(Scaled(multiplier), K, VECTORS, fields)[0] <= EXACT


def test_each_field_that_does_not_divide_is_named():
    class Two(nn.Module):
        width: int = 6
        depths: tuple = (4, 7)

    with pytest.raises(ValueError, match=r"width=6 \(near: 4, 8\), depths\[1\]=7"):
        dcjax.decompose(Two(), K, ("width", "depths"))
    with pytest.raises(ValueError, match="positive multiplier"):
        dcjax.decompose(Two(width=float("nan")), K)  # pyright: ignore[reportArgumentType]
