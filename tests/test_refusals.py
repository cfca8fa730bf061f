"""Refusals: each operation that cannot be composed exactly, with its module path and a remedy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dcjax
from dcjax._tracing.rules import RULES

X = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


def network(layer, after=None, width=8):
    """Return a network of a convolution, the layer in question, and a head (or `after`)."""

    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = layer(self, nn.Conv(self.width, (3, 3), name="stem")(x))
            if after is None:
                return nn.Dense(5, name="head")(nn.relu(x).mean((1, 2)))
            return after(self, x)

    return Net(width)


def standardised(net, x):
    kernel = net.param("kernel", nn.initializers.normal(), (3, 3, x.shape[-1], net.width))
    kernel = (kernel - kernel.mean((0, 1, 2))) / kernel.std((0, 1, 2))
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def tied(net, x):
    table = net.param("table", nn.initializers.normal(), (5, net.width))
    return (x.mean((1, 2)) + nn.relu(table[0])) @ table.T


def integer_head(net, x):
    kernel = net.param("whole", lambda _, shape: jnp.ones(shape, jnp.int32), (net.width, 5))
    return x.mean((1, 2)) @ kernel.astype(jnp.float32)


def integer_bias(net, x):
    bias = net.param("whole", lambda _, shape: jnp.ones(shape, jnp.int32), (5,))
    return nn.Dense(5)(x.mean((1, 2))) + bias


def two_heads_deep(net, x):
    x = nn.Dense(16, name="merge")(x.mean((1, 2)))
    return nn.Dense(5, name="head")(nn.relu(x))


GROUPED = "dcjax.grouped(network, K)"
REFUSED = {
    "layer norm": (lambda net, x: nn.LayerNorm(name="norm")(x), None, "Net/norm", GROUPED),
    "rms norm": (lambda net, x: nn.RMSNorm(name="norm")(x), None, "Net/norm", GROUPED),
    "softmax": (lambda net, x: nn.softmax(x), None, "reduce_max", "group"),
    "mean": (lambda net, x: x - x.mean(-1, keepdims=True), None, "reduce_sum", "group"),
    "straddling group norm": (
        lambda net, x: nn.GroupNorm(num_groups=2, name="norm")(x), None, "Net/norm", "GroupNorm",
    ),
    "weight standardisation": (standardised, None, "constant", "independent of the width"),
    "spectral norm": (
        lambda net, x: nn.SpectralNorm(nn.Conv(net.width, (3, 3)), name="sn")(
            x, update_stats=False
        ),
        None, "Net/sn", "",
    ),
    "one slope": (lambda net, x: nn.PReLU(name="act")(x), None, "Net/act", "one entry a channel"),
    "tied": (lambda net, x: x, tied, "Net", "kernel of its own"),
    "closed-over array": (lambda net, x: x * jnp.arange(x.shape[-1]), None, "iota", "parameter"),
    "closed-over constant": (
        lambda net, x: x * np.arange(x.shape[-1], dtype=np.float32), None, "Net (constant)",
        "parameter",
    ),
    "merge before the head": (
        lambda net, x: nn.relu(nn.Conv(7, (1, 1), name="neck")(x)), None, "Net/neck", "grow",
    ),
    "layers after the head": (lambda net, x: x, two_heads_deep, "merged at Net/merge", "last one"),
    "scale that depends on the width": (
        lambda net, x: nn.tanh(nn.relu(x) * net.width),
        None, "constant", "independent of the width",
    ),
    "one channel": (lambda net, x: x * x[..., :1], None, "from 0 to 1 of 2→8", "width // 2"),
    "integers as the head": (lambda net, x: x, integer_head, "params/whole", "floating point"),
    "integers that are shared": (lambda net, x: x, integer_bias, "params/whole", "floating point"),
    "filled gather": (
        lambda net, x: jnp.take(x, jnp.array([0, 9]), axis=1, mode="fill", fill_value=1.0),
        None, "gather", "clip",
    ),
    "another operation in the global network": (
        lambda net, x: jnp.real((jnp.fft.fft if net.width > 4 else jnp.fft.ifft)(x, axis=1)),
        None, "fft_type", "independent of the width",
    ),
    "transform of channels": (
        lambda net, x: jnp.fft.fft2(x, axes=(2, 3)).real, None, "runs over the channels", "group",
    ),
    "sort": (lambda net, x: jnp.sort(x, -1), None, "sort", "group"),
    "unknown primitive": (
        lambda net, x: x + jnp.linalg.qr(x)[0].sum(), None, "no rule", "register_rule",
    ),
    "random": (
        lambda net, x: x + jax.random.normal(jax.random.key(0), x.shape), None, "random",
        "evaluation mode",
    ),
    "batch axis": (
        lambda net, x: x.transpose(3, 1, 2, 0),
        lambda net, x: nn.Conv(4, (3, 3), name="odd")(x), "Net/odd", "channels",
    ),
    "product of channels": (
        lambda net, x: nn.softmax(x[..., :, None] * x[..., None, :]).sum(-1), None, "mul", "heads",
    ),
    "strided part": (
        lambda net, x: x[..., : x.shape[-1] // 2 : 2], None, "slice", "stride over all channels",
    ),
    "control flow": (
        lambda net, x: jax.lax.cond(x[0, 0, 0, 0] > 0, lambda x: x, lambda x: -x, x),
        None, "slice", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_place_and_remedy(name):
    layer, after, where, remedy = REFUSED[name]
    with pytest.raises(dcjax.NotSeparableError) as error:
        dcjax.layout(network(layer, after), 4, X)
    message = str(error.value)
    assert where in message
    assert "Remedy: " in message
    assert remedy in message


@pytest.mark.parametrize(
    "part", [lambda x: x[..., 1::2], lambda x: x[..., : x.shape[-1] // 2][..., ::2]]
)
def test_strides_over_all_channels_compose(part):
    """The remedy that the refusal of `strided part` names works."""
    x = jax.random.normal(jax.random.key(1), X.shape)
    strided = network(lambda net, x: part(x), width=16)
    assert dcjax.verify(strided, dcjax.init(strided, 4, jax.random.key(0), x), x).error < 1e-5


class Norms(nn.Module):
    """A network over tokens with a norm within each sub-network: the remedy for LayerNorm."""

    width: int
    subnet_width: int

    @nn.compact
    def __call__(self, tokens):
        x = nn.Dense(self.width)(tokens)
        x = nn.GroupNorm(num_groups=None, group_size=self.subnet_width, reduction_axes=(-1,))(x)
        return nn.Dense(5)(nn.relu(x))


def test_the_remedy_for_layer_norm_composes_and_is_the_layer_norm_of_a_sub_network():
    tokens = jax.random.normal(jax.random.key(1), (2, 6, 3))
    network = Norms(16, 4)
    stacked = dcjax.init(network, 4, jax.random.key(0), tokens)
    assert dcjax.verify(network, stacked, tokens).error < 1e-5
    hidden = 1 + jax.random.normal(jax.random.key(2), (2, 6, 4))
    group_norm = nn.GroupNorm(num_groups=None, group_size=4, reduction_axes=(-1,))
    expected, _ = nn.LayerNorm().init_with_output(jax.random.key(0), hidden)
    got, _ = group_norm.init_with_output(jax.random.key(0), hidden)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_the_remedy_for_layer_norm_does_not_mix_tokens():
    tokens = jax.random.normal(jax.random.key(1), (2, 6, 3))
    network = Norms(16, 4)
    variables = dcjax.compose(dcjax.init(network, 4, jax.random.key(0), tokens))
    changed = network.apply(variables, tokens.at[:, -1].add(1.0))
    logits = network.apply(variables, tokens)
    np.testing.assert_array_equal(changed[:, :-1], logits[:, :-1])
    assert np.abs(changed[:, -1] - logits[:, -1]).max() > 0.01


def test_all_violations_in_one_error_before_anything_is_initialised():
    bad = network(lambda net, x: nn.PReLU(name="act")(nn.LayerNorm(name="norm")(nn.softmax(x))))
    with pytest.raises(dcjax.NotSeparableError) as error:
        dcjax.init(bad, 4, jax.random.key(0), jnp.zeros(X.shape))
    paths = [violation.path for violation in error.value.violations]
    assert paths == ["Net", "Net", "Net/norm", "Net/act"]


def test_violations_that_differ_in_their_paths_only_are_one_paragraph():
    def layers(net, x):
        for i in range(20):
            x = nn.LayerNorm(name=f"norm_{i}")(x)
        return nn.softmax(x)

    with pytest.raises(dcjax.NotSeparableError) as error:
        dcjax.layout(network(layers), 4, X)
    message, violations = str(error.value), error.value.violations
    assert all(violation.path in message for violation in violations)
    assert "norm_0; Net/norm_1; " in message
    assert len(violations) > 20
    kinds = {violation[1:] for violation in violations}
    assert message.count("Remedy: ") == len(kinds) < 4
    assert len(message) < 2500


def test_a_width_that_grows_by_another_factor_is_refused():
    class Odd(nn.Module):
        width: int = 8

        @nn.compact
        def __call__(self, x):
            return nn.Dense(5)(nn.relu(nn.Conv(self.width**2, (1, 1))(x)))

    with pytest.raises(dcjax.NotSeparableError, match="expected 4 × 4 = 16"):
        dcjax.layout(Odd(), 4, X)


@pytest.mark.parametrize(
    "part",
    [
        lambda x, w: x[:, :, :, :w],
        lambda x, w: x[..., -w:],
        lambda x, w: jax.lax.dynamic_slice_in_dim(x, 0, w, 3),
        lambda x, w: x[..., w // 2 : w // 2 + 2],
        lambda x, w: jax.lax.dynamic_slice_in_dim(x, w // 2, 2, 3),
        lambda x, w: jnp.take(x, jnp.arange(w), axis=3),
        lambda x, w: jax.lax.top_k(x, w)[0],
        lambda x, w: jax.lax.dynamic_update_slice(x, jnp.ones((2, 8, 8, w)), (0, 0, 0, 0)),
        lambda x, w: nn.max_pool(x, (2, 2), padding=((0, w), (0, 0))),
        lambda x, w: nn.Conv(4, (3, 3), padding=((0, w), (0, 0)))(x).max((1, 2), keepdims=True),
    ],
)
def test_parts_of_the_input_that_depend_on_the_width_are_refused(part):
    class Part(nn.Module):
        width: int = 8

        @nn.compact
        def __call__(self, x):
            x = part(x, self.width)
            return nn.Dense(5)(nn.relu(nn.Conv(self.width, (3, 3))(x)).mean((1, 2)))

    with pytest.raises(dcjax.NotSeparableError, match="Part"):
        dcjax.layout(Part(), 4, jax.ShapeDtypeStruct((2, 8, 8, 16), jnp.float32))


def test_a_head_whose_kernel_is_returned_too_is_refused():
    class TwoResults(nn.Module):
        width: int = 8

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(self.width, (3, 3))(x).mean((1, 2))
            table = self.param("table", nn.initializers.normal(), (self.width, 5))
            return x @ table, x * table[:, 0]

    with pytest.raises(dcjax.NotSeparableError, match="kernel of its own"):
        dcjax.layout(TwoResults(), 4, X)


def test_a_broadcast_array_padded_with_ones_is_not_block_diagonal():
    def layer(net, x):
        row = net.param("row", nn.initializers.normal(), (1, net.width))
        spread = jnp.broadcast_to(row.T, (net.width, net.width))
        padded = jnp.pad(spread, ((0, 0), (0, net.width)), constant_values=1.0)
        return x @ padded

    with pytest.raises(dcjax.NotSeparableError, match="Net"):
        dcjax.layout(network(layer), 4, X)


def test_a_width_with_a_constant_part_is_refused():
    # 2 + 3 channels become 8 + 3: the sizes alone look like three entries that all share.
    net = network(lambda net, x: nn.relu(nn.Conv(net.width + 3, (3, 3), name="odd")(x)))
    with pytest.raises(dcjax.NotSeparableError, match="Net/odd"):
        dcjax.layout(net, 4, X)
    bare = network(
        lambda net, x: nn.relu(nn.Conv(net.width + 3, (3, 3), use_bias=False, name="odd")(x))
    )
    with pytest.raises(dcjax.NotSeparableError, match="does not grow K-fold"):
        dcjax.layout(bare, 4, X)


def pooled(net, x):
    return nn.relu(nn.Conv(net.width, (3, 3))(x)).mean((1, 2))


def features(net, x):
    return nn.Conv(net.width, (3, 3))(x)


def swapped(net, x):
    a, b = pooled(net, x), pooled(net, x)
    return nn.Dense(5)(a - b if net.width > 4 else b - a)


def swapped_results(net, x):
    a, b = nn.Dense(5)(pooled(net, x)), nn.Dense(5)(pooled(net, x))
    return (a, b) if net.width > 4 else (b, a)


ONES = np.ones((8, 1), np.float32)


def swapped_with_an_operand(net, x):
    a, b, c = jnp.split(nn.Dense(3 * net.width)(x.mean((1, 2))), 3, -1)
    d, e = jnp.sin(a), jnp.cos(b)
    return nn.Dense(5)((e - c if net.width > 4 else c - e) + d)


DIFFERING_JAXPRS = {
    "an operand and a result": (swapped_with_an_operand, "`sub` takes other arrays"),
    "more results": (
        lambda net, x: (nn.Dense(5)(pooled(net, x)),) * (2 if net.width > 4 else 1),
        "returns other arrays",
    ),
    "branches": (
        lambda net, x: nn.Dense(5)(jax.lax.switch(0, [jnp.sin] * net.width, pooled(net, x))),
        "its number of branches|branches in a sub-network",
    ),
    "an array of the width's square": (
        lambda net, x: (
            nn.Dense(5)(pooled(net, x)), jnp.sin(x[0, 0, 0, 0] + np.zeros(net.width**2, np.float32))
        ),
        "K times as large",
    ),
    "more operations": (
        lambda net, x: nn.Dense(5)(pooled(net, x) if net.width > 4 else jnp.exp(pooled(net, x))),
        "do other things",
    ),
    "operands": (swapped, "`sub` takes other arrays"),
    "a literal for an operand": (
        lambda net, x: nn.Dense(5)((y := pooled(net, x)) * (2 if net.width > 4 else y)),
        "`mul` takes other arrays",
    ),
    "results": (swapped_results, "returns other arrays"),
    "closed-over arrays": (
        lambda net, x: nn.Dense(5)(
            pooled(net, x * ONES + (ONES if net.width > 4 else ONES.copy()))
        ),
        "closes over other arrays",
    ),
    "a cast": (
        lambda net, x: nn.Dense(5)(pooled(
            net, x.astype(jnp.int32 if net.width > 4 else jnp.float16).astype(jnp.float32)
        )),
        "new_dtype depends on the width",
    ),
    "a precision": (
        lambda net, x: nn.Dense(5)(pooled(
            net, jax.lax.reduce_precision(x, 8, 3 if net.width > 4 else 7)
        )),
        "mantissa_bits depends on the width",
    ),
    "an axis": (
        lambda net, x: nn.Dense(5)(
            jax.lax.top_k(features(net, x), 8, axis=1 if net.width > 4 else 2)[0].mean((1, 2))
        ),
        "axis depends on the width",
    ),
    "batch groups": (
        lambda net, x: nn.Dense(5)(pooled(net, x)) + jax.lax.conv_general_dilated(
            x, jnp.ones((8, 8, x.shape[-1], 2)), (1, 1), "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            batch_group_count=1 if net.width > 4 else 2,
        ).sum(),
        "batch_group_count depends on the width",
    ),
    "bits of random numbers": (
        lambda net, x: nn.Dense(5)(pooled(net, x) + jax.random.bits(
            jax.random.key(0), (), jnp.uint8 if net.width > 4 else jnp.uint16
        ).astype(jnp.float32)),
        "(bit_width|impl) depends on the width",
    ),
    "a generator": (
        lambda net, x: nn.Dense(5)(pooled(net, x) + jax.random.bits(
            jax.random.key(0, impl="rbg" if net.width > 4 else "unsafe_rbg")
        ).astype(jnp.float32)),
        "(bit_width|impl) depends on the width",
    ),
    "the filling of a gather": (
        lambda net, x: nn.Dense(5)(pooled(net, x.at[:, [9]].get(
            mode="fill", fill_value=0.0 if net.width > 4 else 1.0
        ))),
        "fill_value depends on the width",
    ),
    "a product's type": (
        lambda net, x: nn.Dense(5)(pooled(net, jax.lax.dot_general(
            x.astype(jnp.int8), jnp.ones((8, 8), jnp.int8), (((1,), (0,)), ((), ())),
            preferred_element_type=jnp.int32 if net.width > 4 else None,
        ).astype(jnp.float32).transpose(0, 1, 3, 2))),
        "preferred_element_type depends on the width",
    ),
    "a zero's sign": (
        lambda net, x: nn.Dense(5)(jnp.arctan2(
            -0.0 if net.width > 4 else 0.0, pooled(net, x)
        )),
        "a constant depends on the width",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERING_JAXPRS)
def test_networks_that_differ_in_more_than_width_are_refused(name):
    call, said = DIFFERING_JAXPRS[name]
    with pytest.raises(dcjax.NotSeparableError, match=said):
        dcjax.layout(network(lambda net, x: x, call), 4, X)


@pytest.mark.parametrize("over", ["itself", "another head"])
def test_a_head_whose_part_of_the_mean_cancels_is_refused(over):
    def head(net, x):
        x = x.mean((1, 2))
        a, b = (net.param(n, nn.initializers.uniform(), (net.width, 5)) for n in "ab")
        return (
            x @ (a / a.sum(1, keepdims=True)) if over == "itself" else x @ a + x @ b + x @ (a / b)
        )

    with pytest.raises(dcjax.NotSeparableError, match="no kernel that could hold the 1/K"):
        dcjax.layout(network(lambda net, x: x, head), 4, X)


@pytest.mark.parametrize(
    "coarse",
    [
        lambda y: jax.lax.reduce_precision(y, 8, 1),
        lambda y: jax.lax.reduce_precision(y, 4, 23),
        lambda y: y.astype(jnp.float8_e4m3fn).astype(jnp.float32),
        lambda y: y.astype(jnp.int32).astype(jnp.float32),
    ],
)
@pytest.mark.parametrize("what", ["logits", "kernel"])
def test_coarse_rounding_of_a_mean_or_a_head_is_refused(coarse, what):
    def head(net, x):
        kernel = net.param("k", nn.initializers.normal(), (net.width, 5))
        x = x.mean((1, 2))
        return coarse(x @ kernel) if what == "logits" else x @ coarse(kernel)

    with pytest.raises(dcjax.NotSeparableError, match=r"not linear|no kernel that could hold"):
        dcjax.layout(network(lambda net, x: x, head), 4, X)


def test_half_precision_of_a_head_is_not_coarse_rounding():
    net = network(lambda net, x: x, lambda net, x: nn.Dense(5, dtype=jnp.bfloat16)(x.mean((1, 2))))
    assert dcjax.layout(net, 4, X).subnets == 4


def test_an_empty_array_is_refused_by_name():
    net = network(lambda net, x: x + x[:0].reshape(0, 8, 8 * net.width).sum())
    with pytest.raises(dcjax.NotSeparableError, match="without entries"):
        dcjax.layout(net, 4, X)


@pytest.mark.parametrize("first", [True, False])
def test_a_pruned_head_s_kernel_is_divided_and_not_its_mask(first):
    def head(net, x):
        shape = net.width, 5
        mask = net.variable("masks", "m", lambda: jnp.ones(shape, bool)).value.astype(jnp.float32)
        kernel = net.param("k", nn.initializers.normal(), shape)
        return x.mean((1, 2)) @ (mask * kernel if first else kernel * mask)

    layout = dcjax.layout(network(lambda net, x: x, head), 4, X)
    heads = {path for path, leaf in layout.leaves if leaf.head}
    assert heads == {("params", "k")}


@pytest.mark.parametrize(
    "broadcast",
    [
        lambda z, width: z * jnp.ones((1, width)),
        lambda z, width: z + jnp.zeros((1, width)),
        lambda z, width: z @ jnp.ones((1, width)),
    ],
)
def test_a_mean_that_is_broadcast_to_channels_is_refused(broadcast):
    def after(net, x):
        return nn.Dense(5)(broadcast(nn.Dense(1, name="merge")(x.mean((1, 2))), net.width))

    with pytest.raises(dcjax.NotSeparableError, match="merged at Net/merge"):
        dcjax.layout(network(lambda net, x: x, after), 4, X)


def test_a_head_that_is_broadcast_to_channels_is_refused():
    def after(net, x):
        kernel = net.param("k", nn.initializers.normal(), (net.width, 1))
        return x.mean((1, 2)) @ (kernel * jnp.ones((1, net.width)))

    with pytest.raises(dcjax.NotSeparableError, match="meets the sub-networks' channels"):
        dcjax.layout(network(lambda net, x: x, after), 4, X)


@pytest.mark.parametrize(
    "gate",
    [
        lambda net, x: x * nn.sigmoid(nn.Conv(net.width, (1, 1))(x)),
        lambda net, x: x * jax.lax.broadcast_in_dim(nn.Dense(net.width)(x[0, 0]), x.shape, (2, 3)),
    ],
)
def test_one_channel_of_a_sub_network_is_not_broadcast_to_as_many_as_there_are_sub_networks(gate):
    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(5)(pooled(self, gate(self, x)))

    with pytest.raises(dcjax.NotSeparableError, match="an axis of 1→3 is broadcast to one of 3"):
        dcjax.layout(Net(3), 3, X)


def test_a_window_that_leaves_channels_out_is_refused():
    def layer(net, x):
        ones, steps = (1, 1, 1, 1), (1, 1, 1, 8)
        x = jax.lax.reduce_window(nn.relu(x), -jnp.inf, jax.lax.max, ones, steps, "VALID")
        return nn.Conv(net.width, (3, 3))(x)

    with pytest.raises(dcjax.NotSeparableError, match="runs over the channels"):
        dcjax.layout(network(layer), 4, X)


def test_a_transfer_of_several_arrays_is_each_of_them():
    net = network(lambda net, x: sum(jax.device_put((x, nn.relu(x)))))
    assert dcjax.layout(net, 4, X).subnets == 4


def test_a_rule_for_an_unknown_primitive_can_be_registered(monkeypatch):
    monkeypatch.delitem(RULES, "tanh")
    net = network(lambda net, x: jnp.tanh(x))
    with pytest.raises(dcjax.NotSeparableError, match="no rule"):
        dcjax.layout(net, 4, X)

    @dcjax.register_rule("tanh")
    def _(context, equation, value):
        return context.like("exp", equation, value)

    assert dcjax.layout(net, 4, X).subnets == 4


def test_a_rule_need_not_compare_parameters_that_are_not_sizes(monkeypatch):
    monkeypatch.setitem(RULES, "transpose", lambda context, equation, value: value)

    def layer(net, x):
        axes = (0, 2, 1, 3, 4) if net.width == 2 else (0, 1, 3, 2, 4)
        return x.reshape(2, 4, 4, 4, -1).transpose(axes).reshape(x.shape)

    with pytest.raises(dcjax.NotSeparableError, match="its permutation depends on the width"):
        dcjax.layout(network(layer), 4, X)
