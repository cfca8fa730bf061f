import dataclasses
import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.models import CNN, ResNet
from dcjax.models._norm import BatchNorm

KEY = jax.random.key(0, impl="rbg")  # compiles several times as fast as the default
IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
NETWORKS = [ResNet(depth=8, width=4), CNN(width=4, stages=2, convolutions=1)]


def shapes(network):
    return jax.eval_shape(network.init, KEY, IMAGES)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("depth", "width", "parameters"), [(32, 16, 466_906), (32, 64, 7_427_914), (20, 16, 272_474)]
)
def test_the_resnet_has_the_published_number_of_parameters(depth, width, parameters):
    assert count(shapes(ResNet(depth=depth, width=width, num_classes=10))["params"]) == parameters


def test_the_cnn_has_the_layers_that_its_fields_say():
    params = shapes(CNN(width=8, num_classes=7, stages=2, convolutions=3))["params"]
    kernels = {name: layer.get("conv", layer)["kernel"].shape for name, layer in params.items()}
    assert kernels == {
        "stage1_block1": (3, 3, 3, 8),
        "stage1_block2": (3, 3, 8, 8),
        "stage1_block3": (3, 3, 8, 8),
        "stage2_block1": (3, 3, 8, 16),
        "stage2_block2": (3, 3, 16, 16),
        "stage2_block3": (3, 3, 16, 16),
        "hidden": (8 * 8 * 16, 16),
        "head": (16, 7),
    }


@pytest.mark.parametrize("network", NETWORKS)
def test_images_without_channels_are_refused(network):
    with pytest.raises(ValueError, match=r"expected images of shape \(N, H, W, C\), got"):
        jax.eval_shape(network.init, KEY, jax.ShapeDtypeStruct((2, 32, 32), jnp.float32))


def grown(wide, narrow, times):
    """For every axis of every leaf, whether it is `times` as long; otherwise it is as long."""

    def axes(wide, narrow):
        assert all(w in (n, times * n) for w, n in zip(wide.shape, narrow.shape, strict=True))
        return tuple(w != n for w, n in zip(wide.shape, narrow.shape, strict=True))

    return jax.tree.map(axes, wide, narrow)


@pytest.mark.parametrize("network", [ResNet(depth=14, width=12), CNN(width=12)])
@pytest.mark.parametrize("subnets", [2, 3])
def test_every_layer_but_the_head_scales_with_the_width(network, subnets):
    narrow = dataclasses.replace(network, width=network.width // subnets)
    found = grown(shapes(network), shapes(narrow), subnets)["params"]
    first = "stem" if isinstance(network, ResNet) else "stage1_block1"
    assert found.pop("head") == {"kernel": (True, False), "bias": (False,)}
    assert found[first].pop("conv") == {"kernel": (False, False, False, True)}
    for axes in jax.tree.leaves(found, is_leaf=lambda node: isinstance(node, tuple)):
        assert axes[-2:] == (True,) * min(len(axes), 2)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_compute_in_the_dtype_with_float32_parameters(network, dtype):
    network = dataclasses.replace(network, dtype=dtype)
    variables = shapes(network)
    logits, state = jax.eval_shape(
        functools.partial(network.apply, capture_intermediates=True), variables, IMAGES
    )
    maps = state["intermediates"]
    chex.assert_type(
        [*jax.tree.leaves(variables), logits, *maps.pop("head")["__call__"]], "float32"
    )
    del maps["__call__"]
    chex.assert_type(jax.tree.leaves(maps), jnp.dtype(dtype))
    chex.assert_shape(logits, (2, 10))


@pytest.mark.parametrize("network", NETWORKS)
def test_training_takes_the_batch_s_statistics_and_evaluation_the_running_ones(network):
    x = 3 + jax.random.normal(KEY, (4, 8, 8, 3))
    variables = network.init(KEY, x)
    train = jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))
    logits, updated = train(variables, x)
    for _ in range(100):  # 0.9¹⁰⁰ of the initial statistics are left
        _, updated = train({**variables, **updated}, x)
    evaluate = jax.jit(network.apply)
    assert not jnp.allclose(evaluate(variables, x), logits, atol=1e-2)
    chex.assert_trees_all_close(evaluate({**variables, **updated}, x), logits, atol=1e-2)


def test_kernels_of_convolutions_are_he_normal():
    network = CNN(width=64, stages=1)
    params = network.init(KEY, jnp.ones((1, 4, 4, 3)))["params"]
    kernel = params["stage1_block2"]["conv"]["kernel"]
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 64)) ** 0.5, rtol=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet(depth=31), "depth = 31, expected 6n [+] 2: 8, 14"),
        (lambda: ResNet(depth=2), "depth = 2, expected"),
        (lambda: ResNet(depth="8"), "depth = '8', expected"),  # pyright: ignore
        (lambda: ResNet(depth=-4), "depth = -4, expected"),
        (lambda: ResNet(width=0), "ResNet: width = 0; these must be integers of at least 1"),
        (lambda: CNN(width="8", stages=None), r"CNN: width = '8', stages = None; .*rs"),  # pyright: ignore
        (lambda: ResNet(num_classes=-1), "ResNet: num_classes = -1"),
        (lambda: CNN(stages=0, convolutions=0), "CNN: stages = 0, convolutions = 0; these must"),
        (lambda: shapes(CNN(stages=6)), "32, 32, 3.*at least 64"),
    ],
)
def test_fields_that_make_no_network_are_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batch_norm_is_flax_s(dtype, train):
    theirs = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)
    ours = BatchNorm(momentum=0.9, epsilon=1e-5, dtype=dtype)
    x = (3 + 2 * jax.random.normal(jax.random.key(0), (16, 8, 8, 5))).astype(dtype)
    start = theirs.init(jax.random.key(1), x)
    chex.assert_trees_all_equal(ours.init(jax.random.key(1), x, train), start)
    leaves, structure = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    drawn = [leaf + jax.random.uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    variables = jax.tree.unflatten(structure, drawn)

    def value(apply, variables, x):
        y, renewed = apply(variables, x, mutable=["batch_stats"])
        return jnp.sin(y.astype(jnp.float32)).sum(), (y, renewed)

    def all_of(apply):
        return jax.value_and_grad(value, argnums=(1, 2), has_aux=True)(apply, variables, x)

    expected = all_of(theirs.apply)
    got = all_of(lambda variables, x, **how: ours.apply(variables, x, train, **how))
    chex.assert_trees_all_equal_dtypes(got, expected)
    # in bfloat16 two values a rounding apart
    rtol, atol = (1e-4, 1e-4) if dtype == jnp.float32 else (0.02, 0.02)
    chex.assert_trees_all_close(got, expected, rtol=rtol, atol=atol)
