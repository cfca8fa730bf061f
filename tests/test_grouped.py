"""Layer norms within groups: the composed network computes the mean of its sub-networks."""

import copy
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dcjax
from dcjax._linen.grouped import in_one_group
from tests.architectures import Bert, CausalLM, ConvNeXt, Mixer, ViT
from tests.exactness import random_variables, relative_error

K = 4
IMAGES = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
TOKENS = jax.random.randint(jax.random.key(2), (2, 8), 0, 13)
VECTORS = jax.random.normal(jax.random.key(3), (3, 6, 8))
SENTENCES = {"segments": TOKENS % 2, "valid": jnp.arange(8)[None] < jnp.array([[8], [5]])}
HEADS = ("width", "heads")
EXACT = 2e-6


class Normed(nn.Module):
    """A norm between two dense layers."""

    norm: nn.Module
    width: int = 32

    @nn.compact
    def __call__(self, x, **kwargs):
        x = self.norm(nn.Dense(self.width)(x), **kwargs)
        return nn.Dense(5)(nn.relu(x))


@pytest.mark.parametrize(
    ("network", "x", "fields", "kwargs"),
    [
        (ViT(), IMAGES, HEADS, {}),
        (ConvNeXt(), IMAGES, ("width",), {}),
        (CausalLM(), TOKENS, HEADS, {}),
        (Bert(), TOKENS, HEADS, SENTENCES),
        (Mixer(groups=4), IMAGES, ("width", "groups"), {}),
    ],
    ids=["ViT", "ConvNeXt", "causal LM", "BERT", "MLP-Mixer"],
)
def test_architectures_compose_exactly(network, x, fields, kwargs):
    grouped = dcjax.grouped(network, K)
    assert dcjax.decompose(grouped, K, fields) == dcjax.decompose(network, K, fields)
    error, stacked = relative_error(grouped, K, x, fields, **kwargs)
    assert error <= EXACT
    assert dcjax.verify(grouped, stacked, x, fields=fields, **kwargs).error <= EXACT


def test_variables_are_those_of_the_plain_network_bit_for_bit():
    plain = ViT().init(jax.random.key(0), IMAGES)
    grouped = dcjax.grouped(ViT(), K).init(jax.random.key(0), IMAGES)
    jax.tree.map(np.testing.assert_array_equal, grouped, plain)
    stacked = dcjax.init(dcjax.grouped(ViT(), K), K, jax.random.key(0), IMAGES, fields=HEADS)
    own = dcjax.decompose(ViT(), K, HEADS).init(jax.random.fold_in(jax.random.key(0), 2), IMAGES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), stacked[2], own)


def test_a_sub_network_in_one_group_is_itself_bit_for_bit():
    network = dcjax.grouped(ViT(), K)
    subnet = dcjax.decompose(network, K, HEADS)
    variables = random_variables(dcjax.init(network, K, jax.random.key(0), IMAGES, fields=HEADS))[1]
    one = in_one_group(network, subnet)
    np.testing.assert_array_equal(
        jax.jit(one.apply)(variables, IMAGES), jax.jit(subnet.apply)(variables, IMAGES)
    )
    assert dcjax.grouped(subnet, 1) is subnet


def test_causal_models_do_not_see_the_future():
    network = dcjax.grouped(CausalLM(), K)
    stacked = random_variables(dcjax.init(network, K, jax.random.key(0), TOKENS, fields=HEADS))
    variables = dcjax.compose(stacked)
    before = network.apply(variables, TOKENS)
    after = network.apply(variables, TOKENS.at[:, 5].set((TOKENS[:, 5] + 1) % 13))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5] - after[:, 5]).max() > 0.01


class Doubled(nn.LayerNorm):
    """A subclass that calls Flax's own norm."""

    def __call__(self, x, **kwargs):
        return 2 * super().__call__(x, **kwargs)


NORMS = {
    "epsilon": nn.LayerNorm(epsilon=0.5),
    "no scale": nn.LayerNorm(use_scale=False),
    "no bias": nn.LayerNorm(use_bias=False),
    "neither": nn.LayerNorm(use_scale=False, use_bias=False),
    "slow variance": nn.LayerNorm(use_fast_variance=False),
    "over tokens too": nn.LayerNorm(reduction_axes=(1, 2)),
    "a scale for every token": nn.LayerNorm(reduction_axes=(1, 2), feature_axes=(1, 2)),
    "each channel": nn.LayerNorm(reduction_axes=1, feature_axes=-1),
    "rms": nn.RMSNorm(epsilon=0.1),
    "rms, no scale": nn.RMSNorm(use_scale=False),
    "subclass": Doubled(),
    "two groups": nn.GroupNorm(num_groups=2),
    "one group": nn.GroupNorm(num_groups=1, reduction_axes=(-1,)),
    "groups of a size": nn.GroupNorm(num_groups=None, group_size=4),
    "instance": nn.InstanceNorm(),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_compose_exactly(name):
    network = dcjax.grouped(Normed(NORMS[name]), K)
    error, _ = relative_error(network, K, VECTORS)
    assert error <= EXACT
    shapes = jax.tree.map(jnp.shape, network.init(jax.random.key(0), VECTORS))
    plain = Normed(NORMS[name])
    assert shapes == jax.tree.map(jnp.shape, plain.init(jax.random.key(0), VECTORS))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_masks(norm):
    mask = jnp.arange(6)[None, :, None] < jnp.array([6, 4, 2])[:, None, None]
    network = Normed(norm(reduction_axes=(1, 2)))
    assert relative_error(dcjax.grouped(network, K), K, VECTORS, mask=mask)[0] <= EXACT


def test_a_norm_over_the_first_axis_of_features():
    class ChannelsFirst(nn.Module):
        width: int = 16

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(self.width)(x).swapaxes(1, 2)
            x = nn.LayerNorm(reduction_axes=1, feature_axes=1)(x)
            return nn.Dense(5)(nn.relu(x).swapaxes(1, 2))

    assert relative_error(dcjax.grouped(ChannelsFirst(), K), K, VECTORS)[0] <= EXACT


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_half_precision(param_dtype):
    norm = nn.LayerNorm(dtype=jnp.bfloat16, param_dtype=param_dtype)
    network = dcjax.grouped(Normed(norm), K)
    assert relative_error(network, K, VECTORS)[0] <= 1e-5  # the same roundings in both
    assert network.init(jax.random.key(0), VECTORS)["params"]["norm"]["scale"].dtype == param_dtype


def test_axis_names():
    network = dcjax.grouped(Normed(nn.LayerNorm(axis_name="batch")), K)
    plain = dcjax.grouped(Normed(nn.LayerNorm()), K)
    x = jnp.stack([VECTORS, VECTORS])
    variables = plain.init(jax.random.key(0), VECTORS)
    got = jax.vmap(lambda x: network.apply(variables, x), axis_name="batch")(x)
    np.testing.assert_allclose(got[0], plain.apply(variables, VECTORS), atol=1e-6)


class Lifted(nn.Module):
    """Blocks under Flax's transformations."""

    how: str
    width: int = 32

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x)
        scan = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 2}
        block = {
            "remat": nn.remat(Block),
            "jit": JitBlock,
            "scan": nn.scan(Block, **scan),
            "scan of remat": nn.scan(nn.remat(Block), **scan),
            "vmap": nn.vmap(Block, variable_axes={"params": None}, split_rngs={"params": False}),
        }[self.how]
        return nn.Dense(5)(block(self.width)(x)[0])


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.Dense(self.width)(nn.gelu(nn.RMSNorm()(x))), None


JitBlock = nn.jit(Block)


@pytest.mark.parametrize("how", ["remat", "jit", "scan", "scan of remat", "vmap"])
def test_under_transformations(how):
    plain, grouped = Lifted(how), dcjax.grouped(Lifted(how), K)
    variables = plain.init(jax.random.key(0), VECTORS)
    before = plain.apply(variables, VECTORS)  # nn.jit remembers what it traced here
    assert np.abs(grouped.apply(variables, VECTORS) - before).max() > 1e-3
    assert relative_error(grouped, K, VECTORS)[0] <= EXACT
    np.testing.assert_array_equal(plain.apply(variables, VECTORS), before)


class Encoder(nn.Module):
    width: int = 32

    def setup(self):
        self.dense, self.norm, self.head = nn.Dense(self.width), nn.LayerNorm(), nn.Dense(5)

    def encode(self, x):
        return self.norm(self.dense(x))

    def __call__(self, x):
        return self.head(self.encode(x))


def test_methods_and_fields_are_those_of_the_network():
    network = dcjax.grouped(Encoder(), K)
    assert relative_error(network, K, VECTORS)[0] <= EXACT
    variables = network.init(jax.random.key(0), VECTORS)
    encoded = network.apply(variables, VECTORS, method="encode")
    for other in (
        network.bind(variables).encode(VECTORS),
        network.apply(variables, VECTORS, method=Encoder.encode),
        nn.apply(lambda module, x: module.encode(x), network)(variables, VECTORS),
    ):
        np.testing.assert_array_equal(other, encoded)
    assert np.abs(encoded - Encoder().apply(variables, VECTORS, method="encode")).max() > 1e-3
    assert isinstance(network, Encoder)
    assert network.width == 32
    assert "in 4 groups: Encoder" in repr(network)


def test_equal_networks_are_equal_and_can_be_copied():
    network = dcjax.grouped(Encoder(), K)
    others = [dcjax.grouped(Encoder(), K), copy.deepcopy(network)]
    others.append(pickle.loads(pickle.dumps(network)))
    assert all(other == network and hash(other) == hash(network) for other in others)
    assert network != Encoder()
    assert network != dcjax.grouped(Encoder(), 2)


def test_a_grouped_network_within_another_keeps_its_parameters_names():
    class Outer(nn.Module):
        def setup(self):
            self.body = dcjax.grouped(Encoder(), K)

        def __call__(self, x):
            return self.body(x)

    network = dcjax.grouped(Encoder(), K)
    params = network.init(jax.random.key(0), VECTORS)["params"]
    outer = {"params": {"body": params}}
    expected = network.apply({"params": params}, VECTORS)
    np.testing.assert_array_equal(Outer().apply(outer, VECTORS), expected)


class Configured(nn.Module):
    config: dict

    def narrow(self, subnets):
        return Configured({**self.config, "width": self.config["width"] // subnets})

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(nn.relu(nn.LayerNorm()(nn.Dense(self.config["width"])(x))))


def test_the_networks_own_narrow():
    network = dcjax.grouped(Configured({"width": 32}), K)
    assert dcjax.decompose(network, K).config["width"] == 8
    assert relative_error(network, K, VECTORS)[0] <= EXACT


def test_fewer_sub_networks_than_groups():
    network = dcjax.grouped(ViT(width=32, heads=4), 4)
    assert dcjax.decompose(network, 2, HEADS) == dcjax.grouped(ViT(width=16, heads=2), 2)
    assert relative_error(network, 2, IMAGES, HEADS)[0] <= EXACT
    with pytest.raises(ValueError, match="grouped for 4 sub-networks, which 8 do not divide"):
        dcjax.decompose(network, 8, HEADS)


def test_norms_that_do_not_grow_are_kept_by_name():
    class Standardised(nn.Module):
        width: int = 16

        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm(use_scale=False, use_bias=False)(x)  # of the input
            # Of two channels the fast variance loses digits: 2.2e-6 in float32, 3e-16 in float64.
            x = nn.GroupNorm(num_groups=self.width // 4)(nn.Dense(self.width)(x))
            return nn.Dense(5)(nn.LayerNorm()(x))

    for keep, path in ((("GroupNorm_0",), "LayerNorm_0"), (("LayerNorm_0",), "GroupNorm_0")):
        with pytest.raises(dcjax.NotSeparableError, match=f"Standardised/{path}") as error:
            dcjax.layout(dcjax.grouped(Standardised(), K, keep=keep), K, VECTORS)
        assert "dcjax.grouped(network, K, keep=(…))" in "".join(error.value.__notes__)
    network = dcjax.grouped(Standardised(), K, keep=("GroupNorm_*", "LayerNorm_0"))
    assert relative_error(network, K, VECTORS)[0] <= EXACT


def test_training_moves_the_composed_network_as_its_sub_networks():
    """The gradient of the diagonal blocks is that of the sub-networks, through the grouped norm."""
    network = dcjax.grouped(ViT(), K)
    stacked = random_variables(dcjax.init(network, K, jax.random.key(0), IMAGES, fields=HEADS))
    subnet = dcjax.decompose(network, K, HEADS)
    whole = jax.grad(lambda v: network.apply(v, IMAGES).sum())(dcjax.compose(stacked))
    parts = jax.grad(lambda v: subnet.apply(v, IMAGES).sum())(stacked[1])
    got = dcjax.extract(whole, like=stacked)[1]["params"]["ViTBlock_0"]["LayerNorm_0"]
    for name, leaf in parts["params"]["ViTBlock_0"]["LayerNorm_0"].items():
        np.testing.assert_allclose(K * got[name], leaf, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", [ViT(), CausalLM()])
def test_refusals_of_norms_name_the_remedy_and_it_works(network):
    x = IMAGES if isinstance(network, ViT) else TOKENS
    with pytest.raises(dcjax.NotSeparableError, match=r"dcjax\.grouped\(network, K\)"):
        dcjax.layout(network, K, x, fields=HEADS)
    assert dcjax.layout(dcjax.grouped(network, K), K, x, fields=HEADS).subnets == K


class Widening(nn.Module):
    """Token mixing whose hidden units grow: each would mix the channels of all sub-networks."""

    width: int = 16

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x)
        y = nn.gelu(nn.Dense(self.width)(x.swapaxes(1, 2)))
        return nn.Dense(5)(x + nn.Dense(x.shape[1])(y).swapaxes(1, 2))


def test_token_mixing_that_all_channels_share_is_refused():
    """Sub-network k has a kernel W_k; no W has W = W_k for its channels and W = W_j for those of j.

    The remedy, a kernel for each group of channels, composes exactly (see the architectures).
    """
    with pytest.raises(dcjax.NotSeparableError) as error:
        dcjax.layout(dcjax.grouped(Mixer(), K), K, IMAGES)
    first = error.value.violations[0]
    assert first.path == "Mixer/Dense_0"
    assert "kernel has shape (16, 8) in both networks, one place for K values" in first.problem
    assert "one kernel for each group of channels" in first.remedy
    with pytest.raises(dcjax.NotSeparableError, match="mixes the channels of different"):
        dcjax.layout(Widening(), K, VECTORS)


@pytest.mark.usefixtures("unchecked")
def test_wrong_use():
    with pytest.raises(TypeError, match="instance of a Flax Linen module"):
        dcjax.grouped(ViT, K)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least 1"):
        dcjax.grouped(ViT(), 0)
    with pytest.raises(TypeError, match="keep must be paths"):
        dcjax.grouped(ViT(), K, keep=1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="grouped already"):
        dcjax.grouped(dcjax.grouped(ViT(), K), K)
    with pytest.raises(ValueError, match=r'4 × 16 groups of 32 channels.*keep=\("norm",\)'):
        dcjax.grouped(Normed(nn.GroupNorm(16)), K).init(jax.random.key(0), VECTORS)
    with pytest.raises(ValueError, match="norm normalises 30 channels, which 4 groups"):
        dcjax.grouped(Normed(nn.LayerNorm(), width=30), K).init(jax.random.key(0), VECTORS)
    with pytest.raises(ValueError, match=r"keep names nor, but the modules with norms are norm\n"):
        dcjax.layout(dcjax.grouped(Normed(nn.LayerNorm()), K, keep=("norm", "nor")), K, VECTORS)
