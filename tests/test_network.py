"""decompose, init, apply, verify on networks."""

import copy
import pickle
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict

import dcjax
from tests.networks import LeNet, Scanned
from tests.test_contract import images, random_stacked


class Two(nn.Module):
    stem: int = 4
    blocks: tuple[int, ...] = (4, 8)

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.stem, (3, 3))(x)
        for width in self.blocks:
            x = nn.relu(nn.Conv(width, (3, 3))(x))
        return nn.Dense(5)(x.mean((1, 2)))


class Nested(nn.Module):
    inner: LeNet

    def narrow(self, subnets):
        return Nested(dcjax.decompose(self.inner, subnets))

    def __call__(self, x):
        return self.inner(x)


class Narrowed(LeNet):
    def narrow(self, subnets):
        return self.of_width(self.width // subnets)

    def of_width(self, width):
        return Narrowed(width)


class Outer(Nested):
    """A module whose `narrow` calls that of its field, which makes a module in another method."""

    def narrow(self, subnets):
        return Outer(self.inner.narrow(subnets))


class Mean(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(self.width)(x * (1 / x.shape[-1]))))


class Lost(LeNet):
    def narrow(self, subnets):
        return None


class Several(LeNet):
    def __call__(self, x):
        return x, x


class Silent(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        nn.Dense(self.width)(x)


def test_fields_that_carry_width():
    assert dcjax.decompose(Two(), 4, fields=("stem", "blocks")) == Two(stem=1, blocks=(1, 2))
    assert dcjax.decompose(LeNet(8), 4) == LeNet(2)
    assert dcjax.decompose(Nested(LeNet(8)), 4).inner.width == 2
    subnet = dcjax.decompose(Outer(Narrowed(8)), 4)
    assert (subnet, subnet.inner.parent) == (Outer(Narrowed(2)), None)
    network = LeNet(8)
    assert dcjax.decompose(network, 1) is network


def test_narrow_may_call_narrow():
    x = images((2, 8, 8, 3))
    stacked = dcjax.init(Outer(Narrowed(8)), 4, jax.random.key(0), x)
    assert dcjax.verify(Outer(Narrowed(8)), stacked, x, tolerance=1e-5).layers


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"3 sub-networks do not divide width=64.*63, 66",
         lambda: dcjax.decompose(LeNet(64), 3)),
        (ValueError, r"blocks\[1\]=8", lambda: dcjax.decompose(Two(blocks=(3, 8)), 3, ("blocks",))),
        (TypeError, "its fields are blocks, stem", lambda: dcjax.decompose(Two(), 2)),
        (TypeError, "a width", lambda: dcjax.decompose(Two(stem="wide"), 2, "stem")),
        (ValueError, "at least 1, got 0", lambda: dcjax.decompose(LeNet(4), 0)),
        (TypeError, "must be an int, got 'four'", lambda: dcjax.decompose(LeNet(4), "four")),
        (TypeError, "an instance", lambda: dcjax.decompose(LeNet, 2)),
        (TypeError, "keyword arguments", lambda: dcjax.layout(LeNet(4), 2, {"x": "images"})),
        (TypeError, "x/x/1 must be numbers", lambda: dcjax.init(
            LeNet(4), 2, jax.random.key(0), {"x": [None, object()]})),
        (ValueError, "channels splits one array", lambda: dcjax.layout(
            LeNet(6), 3, {"x": images((1, 8, 8, 3))}, samples=dcjax.samples.channels(3))),
        (TypeError, "random key", lambda: dcjax.init(LeNet(4), 2, 0, images((1, 8, 8, 3)))),
        (TypeError, "such as dcjax.samples.replicate", lambda: dcjax.layout(
            LeNet(4), 4, images((1, 8, 8, 3)), samples=3)),
        (TypeError, "must be an int", lambda: dcjax.decompose(LeNet(4), np.array([2]))),
        (TypeError, "must be an int", lambda: dcjax.decompose(LeNet(4), np.array(2.0))),
        (TypeError, "fields must be names", lambda: dcjax.decompose(LeNet(4), 2, None)),
        (TypeError, "fields must be names", lambda: dcjax.decompose(LeNet(4), 2, (1,))),
        (ValueError, "fields is empty", lambda: dcjax.decompose(LeNet(4), 2, ())),
        (ValueError, "at least 1, got 0", lambda: dcjax.decompose(LeNet(0), 2)),
        (ValueError, "at least 1, got -4", lambda: dcjax.decompose(LeNet(-4), 2)),
        (TypeError, r"must return .* got NoneType", lambda: dcjax.decompose(Lost(4), 2)),
        (TypeError, "an instance", lambda: dcjax.layout(LeNet, 1, images((1, 8, 8, 3)))),
        (TypeError, "an instance", lambda: dcjax.layout(None, 2, images((1, 8, 8, 3)))),
        (TypeError, "result must be arrays: got none", lambda: dcjax.layout(
            Silent(4), 2, images((1, 8)))),
        (TypeError, "array or a tree", lambda: dcjax.layout(LeNet(4), 2, np.array(["a"]))),
        (TypeError, "x must be numbers", lambda: dcjax.init(
            LeNet(4), 2, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"))),
        (TypeError, "random key", lambda: dcjax.init(
            LeNet(4), 2, jax.random.split(jax.random.key(0)), images((1, 8, 8, 3)))),
        (TypeError, "such as dcjax.samples.replicate", lambda: dcjax.layout(
            LeNet(4), 1, images((1, 8, 8, 3)), samples=3)),
        (ValueError, r"empty axis of x, here of shape \(0, 8, 8, 3\)", lambda: dcjax.layout(
            dcjax.models.CNN(width=4, stages=1), 2, images((0, 8, 8, 3)))),
        (ValueError, "empty axis of x.*, or a layer of width 0", lambda: dcjax.init(
            Mean(), 1, jax.random.key(0), np.ones((1, 0)))),
        (ValueError, "samples are for 2", lambda: dcjax.layout(
            LeNet(4), 4, images((1, 8, 8, 3)), samples=dcjax.samples.replicate(2))),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.usefixtures("unchecked")
def test_any_integer_counts_subnetworks():
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    expected = dcjax.layout(LeNet(4), 2, x)
    for subnets in (np.int64(2), np.uint8(2), np.array(2), jnp.asarray(2)):
        layout = dcjax.layout(LeNet(4), subnets, x)
        assert type(layout.subnets) is int
        assert layout == expected


def test_images_of_64_bits_are_those_of_32():
    """As JAX has it; without a warning, which pytest here makes an error."""
    expected = dcjax.layout(LeNet(4), 2, images((1, 8, 8, 3)))
    for dtype in (np.float64, np.int64):
        assert dcjax.layout(LeNet(4), 2, np.ones((1, 8, 8, 3), dtype)) == expected


def test_init_is_each_subnetworks_own():
    x = images((2, 8, 8, 3))
    four = dcjax.init(LeNet(8), 4, jax.random.key(0), x)
    two = dcjax.init(LeNet(4), 2, jax.random.key(0), x)
    for k in range(2):
        np.testing.assert_array_equal(
            four[k]["params"]["Conv_1"]["kernel"], two[k]["params"]["Conv_1"]["kernel"]
        )
    first, second = (four[k]["params"]["Conv_1"]["kernel"] for k in range(2))
    assert np.abs(first - second).max() > 0
    assert str(dcjax.init(Nested(LeNet(4)), 2, jax.random.key(0), x)[0]["params"].keys())


def test_init_of_a_network_whose_variables_depend_on_its_input():
    class Centred(nn.Module):
        width: int = 4

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(self.width, (3, 3))(x)
            mean = self.variable("stats", "mean", lambda: x.mean((0, 1, 2)))
            return nn.Dense(5)(nn.relu(x - mean.value).mean((1, 2)))

    x = images((2, 8, 8, 3))
    stacked = dcjax.init(Centred(), 2, jax.random.key(0), x)
    kernel = nn.Conv(2, (3, 3)).apply({"params": stacked[1]["params"]["Conv_0"]}, x)
    np.testing.assert_allclose(stacked[1]["stats"]["mean"], kernel.mean((0, 1, 2)), atol=1e-6)


def test_apply_gives_each_subnetwork_its_samples():
    network, x = LeNet(8), images((2, 8, 8, 3))
    stacked, subnet = random_stacked(network, 4, x), LeNet(2)
    logits = dcjax.apply(subnet, stacked, dcjax.samples.replicate(4).split(x))
    assert logits.shape == (4, 2, 5)
    np.testing.assert_allclose(logits[3], subnet.apply(stacked[3], x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected xs of shape \(4, N, …\), .* got \(2,"):
        dcjax.apply(subnet, stacked, x)
    xs, params = jnp.stack([x] * 4), stacked["params"]
    for words, args in {
        "an instance": (LeNet, stacked, xs),
        "dcjax.Stacked": (subnet, stacked.tree, xs),
        "dict of collections, such": (subnet, params["Conv_0"], xs),
        "dict of collections": (
            subnet,
            dcjax.Stacked({"params": stacked.tree}, stacked.layout),
            xs,
        ),
        "xs must be numbers": (subnet, stacked, None),
        "stacks one array of logits": (Several(2), stacked, xs),
    }.items():
        with pytest.raises(TypeError, match=words):
            dcjax.apply(*args)
    without = jax.tree.map(lambda leaf: leaf, stacked)
    without.tree["params"]["Conv_1"]["bias"] = None
    with pytest.raises(ValueError, match=r"lack .* params/Conv_1/bias"):
        dcjax.apply(subnet, without, xs)
    more = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), stacked)
    with pytest.raises(ValueError, match=r"expected \(4, …\)"):
        dcjax.apply(subnet, more, xs)


def test_verify_looks_into_scanned_layers():
    network, x = Scanned(4), images((2, 8, 8, 3))
    stacked = random_stacked(network, 2, x)
    report = dcjax.verify(network, stacked, x)
    layers = [row.layer for row in report.layers]
    assert any("ScanBlock" in layer and layer.endswith("Conv_0") for layer in layers)
    assert report.error < 1e-5
    assert "largest relative error" in str(report)


def test_verify_passes_over_random_keys():
    class Key(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jax.random.fold_in(jax.random.key(1), (10 * x.sum()).astype(int))

    class Noisy(nn.Module):
        width: int = 8

        @nn.compact
        def __call__(self, x):
            noise = jax.random.normal(Key()(x), (x.shape[0], 1, 1, 1))
            return nn.Dense(3)(nn.relu(nn.Conv(self.width, (3, 3))(x) * noise).mean((1, 2)))

    network, x = Noisy(), images((2, 8, 8, 3))
    report = dcjax.verify(network, dcjax.init(network, 2, jax.random.key(0), x), x)
    assert report.error < 1e-5


def test_verify_passes_over_a_scan_of_no_rounds():
    class Empty(nn.Module):
        width: int = 8

        @nn.compact
        def __call__(self, x):
            def layer(module, x, _):
                return (y := nn.Conv(self.width, (3, 3))(x)), y

            each = {"variable_broadcast": "params", "split_rngs": {"params": False}}
            x = nn.Conv(self.width, (3, 3))(x)
            x, _ = nn.scan(layer, length=0, **each)(self, x, None)
            return nn.Dense(3)(x.mean((1, 2)))

    network, x = Empty(), images((2, 8, 8, 3))
    report = dcjax.verify(network, dcjax.init(network, 2, jax.random.key(0), x), x)
    assert report.error < 1e-5
    assert report.unseen


def test_verify_names_what_it_cannot_look_into():
    class Chosen(nn.Module):
        width: int = 8

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(self.width, (3, 3), name="before")(x)
            hidden = nn.Conv(self.width, (3, 3), name="within")
            x = nn.cond(jnp.array(True), lambda m, x: m(x), lambda m, x: 2 * m(x), hidden, x)
            return nn.Dense(3, name="head")(x.mean((1, 2)))

    network, x = Chosen(), images((2, 8, 8, 3))
    report = dcjax.verify(network, dcjax.init(network, 2, jax.random.key(0), x), x)
    assert [row.layer for row in report.layers] == ["Chosen/before", "Chosen", "Chosen/head"]
    assert any("within" in path for path in report.unseen)
    assert "not compared, within cond or while: " in str(report)


def test_verify_finds_what_is_wrong(monkeypatch):
    network, x = LeNet(4), images((2, 8, 8, 3))
    stacked = random_stacked(network, 2, x)

    def wrong(stacked, **head):
        variables = dcjax.compose(stacked, **head)
        variables["params"]["Conv_1"]["bias"] = variables["params"]["Conv_1"]["bias"][::-1]
        return variables

    monkeypatch.setattr("dcjax._linen.verify.compose", wrong)
    report = dcjax.verify(network, stacked, x, tolerance=np.inf)
    errors = {row.layer: row.relative for row in report.layers}
    assert errors["LeNet/Conv_0"] < 1e-5 < 1e-2 < errors["LeNet/Conv_1"]
    with pytest.raises(ValueError, match="LeNet/Conv_1"):
        dcjax.verify(network, stacked, x)


def test_verify_refuses_variables_of_another_network():
    network, x = LeNet(4), images((2, 8, 8, 3))
    stacked = random_stacked(network, 2, x)
    for wrong, y in ((LeNet(8), x), (network, images((2, 12, 8, 3)))):
        with pytest.raises(ValueError, match="not belong to this network"):
            dcjax.verify(wrong, stacked, y)
    with pytest.raises(ValueError, match="Pass all variables"):
        dcjax.verify(network, stacked["params"], x)


def test_verify_refuses_other_dtypes_than_the_network_s():
    network, x = LeNet(4), images((2, 8, 8, 3))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_stacked(network, 2, x))
    with pytest.raises(ValueError, match="params/Conv_0/bias: expected float32, got bfloat16"):
        dcjax.verify(network, half, x)


def test_verify_compares_imaginary_parts_too(monkeypatch):
    class Complex(nn.Module):
        width: int = 4

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(self.width, param_dtype=jnp.complex64, name="stem")(x)
            return nn.Dense(3, param_dtype=jnp.complex64, name="head")(x)

    network, x = Complex(), images((2, 3))
    stacked = dcjax.init(network, 2, jax.random.key(0), x)
    assert dcjax.verify(network, stacked, x).error < 1e-5
    monkeypatch.setattr(
        "dcjax._linen.verify.compose",
        lambda stacked, **head: jax.tree.map(jnp.conj, dcjax.compose(stacked, **head)),
    )
    with pytest.raises(ValueError, match="Complex/stem"):
        dcjax.verify(network, stacked, x)


def test_verify_does_not_accept_nan():
    network, x = LeNet(4), images((2, 8, 8, 3))
    stacked = jax.tree.map(lambda leaf: leaf * jnp.nan, random_stacked(network, 2, x))
    with pytest.raises(ValueError, match="nan"):
        dcjax.verify(network, stacked, x)


def test_one_subnetwork_is_the_network():
    network, x = LeNet(4), images((2, 8, 8, 3))
    stacked = random_stacked(network, 1, x)
    assert dcjax.verify(network, stacked, x).error == 0
    with pytest.raises(ValueError, match="not belong to this network"):
        dcjax.verify(LeNet(8), stacked, x)
    np.testing.assert_array_equal(
        network.apply(dcjax.compose(stacked), x), network.apply(stacked[0], x)
    )


class Trains(nn.Module):
    """Batch norm and dropout, which are told apart in training."""

    width: int = 8
    norm: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.width, (3, 3))(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x.mean(axis=(1, 2)))


@pytest.mark.parametrize("norm", [True, False])
def test_a_call_as_in_training_is_refused(norm):
    x = jnp.zeros((2, 8, 8, 3))
    assert dcjax.layout(Trains(norm=norm), 2, x).subnets == 2
    with pytest.raises(ValueError, match=r"evaluation mode \(train=False"):
        dcjax.layout(Trains(norm=norm), 2, x, train=True)


def test_a_fault_of_the_subnetwork_alone_says_whose_it_is():
    class Groups(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = nn.GroupNorm(num_groups=4)(nn.Conv(self.width, (3, 3))(x))
            return nn.Dense(10)(x.mean((1, 2)))

    x = jnp.ones((1, 4, 4, 3))
    with pytest.raises(ValueError, match="does not divide the number of channels") as caught:
        dcjax.init(Groups(8), 4, jax.random.key(0), x)
    assert "decompose(network, 4)" in _notes(caught.value)
    assert "group_size=" in _notes(caught.value)
    # What is wrong with the global network itself is no matter of dcjax.
    with pytest.raises(ValueError, match="does not divide") as caught:
        dcjax.layout(Groups(6), 2, x)
    assert "decompose(" not in _notes(caught.value)


def _notes(error):
    return "\n".join(getattr(error, "__notes__", ()))


def test_verify_does_not_compare_zeros():
    network, x = dcjax.models.CNN(width=4, num_classes=3), jnp.zeros((2, 8, 8, 3))
    stacked = dcjax.init(network, 2, jax.random.key(0), x)
    with pytest.raises(ValueError, match="every feature map of the sub-networks is zero"):
        dcjax.verify(network, stacked, x)


@pytest.mark.usefixtures("unchecked")
def test_what_a_stacked_is_not_is_said():
    network = dcjax.models.CNN(width=4, num_classes=3)
    stacked = dcjax.init(network, 2, jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(AttributeError, match=r"stacked.tree for the pytree"):
        _ = stacked["params"]["head"].shape
    assert copy.deepcopy(stacked).layout == stacked.layout
    assert "params" in dcjax.Stacked(FrozenDict(stacked.tree), stacked.layout)
    assert pickle.loads(pickle.dumps(stacked)).layout == stacked.layout


class Graph(NamedTuple):
    nodes: Any
    senders: Any
    receivers: Any
    globals: Any = None


@pytest.mark.parametrize("kind", [Graph, dict])
def test_a_tree_of_arrays_is_an_input(kind):
    class Messages(nn.Module):
        width: int = 8

        @nn.compact
        def __call__(self, graph):
            nodes, senders, receivers = (
                [graph["nodes"], graph["senders"], graph["receivers"]]
                if isinstance(graph, dict)
                else graph[:3]
            )
            x = nn.relu(nn.Dense(self.width)(nodes))
            x = x + jax.ops.segment_sum(x[senders], receivers, len(x))
            return nn.Dense(3)(x)

    graph = kind(nodes=images((4, 6)), senders=np.array([0, 1, 2]), receivers=np.array([1, 2, 3]))
    network, key = Messages(), jax.random.key(0)
    stacked = dcjax.init(network, 4, key, graph)
    assert dcjax.layout(network, 4, jax.eval_shape(lambda: graph)) == stacked.layout
    assert dcjax.verify(network, stacked, graph, tolerance=1e-5).layers
    xs = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), graph)
    logits = dcjax.apply(dcjax.decompose(network, 4), stacked, xs)
    together = network.apply(dcjax.compose(stacked), graph)
    np.testing.assert_allclose(together, logits.mean(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="expected xs of shape"):
        dcjax.apply(dcjax.decompose(network, 4), stacked, graph)


def test_apply_says_that_it_takes_the_sub_network():
    x = jnp.zeros((4, 2, 8, 8, 3))
    stacked = dcjax.init(LeNet(8), 4, jax.random.key(0), x[0])
    with pytest.raises(flax.errors.ScopeParamShapeError) as error:
        dcjax.apply(LeNet(8), stacked, x)
    assert "dcjax.decompose(network, 4)" in "".join(error.value.__notes__)


@pytest.mark.parametrize(
    "other",
    [nnx.Linear(3, 8, rngs=nnx.Rngs(0)), hk.transform(lambda x: hk.Linear(8)(x)), jnp.tanh],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda net: dcjax.decompose(net, 4),
        lambda net: dcjax.layout(net, 4, jnp.zeros((2, 3))),
        lambda net: dcjax.init(net, 4, jax.random.key(0), jnp.zeros((2, 3))),
    ],
)
def test_networks_of_other_libraries_have_another_function(other, call):
    with pytest.raises(TypeError, match=r"Flax Linen module, got .*dcjax.layout_of_functions") as e:
        call(other)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("tolerance", ["1e-3", np.ma.masked_array([1.0], [True]), [0.1]])
def test_a_tolerance_is_a_number(tolerance):
    network, x = LeNet(4), jnp.ones((1, 8, 8, 3))
    stacked = dcjax.init(network, 2, jax.random.key(0), x)
    with pytest.raises(TypeError, match="tolerance must be a number or None, got"):
        dcjax.verify(network, stacked, x, tolerance=tolerance)
