"""The compiled convolution: lax's in all it computes, whatever the shapes, threads and devices."""

import functools
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import dcjax
from dcjax.native import NativeError, _build, conv_general_dilated

ROOT = pathlib.Path(dcjax.__file__).parents[1]
OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def draw(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), dtype)


def gradients(by, x, kernel, strides, padding):
    """By the image and by the kernel, of a cost that is not linear."""

    def cost(x, kernel):
        return jnp.sum(jnp.sin(by(x, kernel, strides, padding, **OPTIONS)))

    return jax.grad(cost, (0, 1))(x, kernel)


pytestmark = pytest.mark.usefixtures("built")


def by(function, x, kernel, strides, pads):
    """The convolution and its gradients."""
    y = function(x, kernel, strides, pads, **OPTIONS)
    return y, *gradients(function, x, kernel, strides, pads)


def assert_same(x, kernel, strides, pads):
    kernel = kernel / np.sqrt(kernel[..., 0].size)  # or rounding is all that the cost's sine shows
    ours = by(conv_general_dilated, x, kernel, strides, pads)
    theirs = by(lax.conv_general_dilated, x, kernel, strides, pads)
    for got, expected in zip(ours, theirs, strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        scale = np.abs(expected).max(initial=0) + 1e-6
        np.testing.assert_allclose(got, expected, atol=1e-5 * scale)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(0, 5),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["SAME", "VALID", [(2, 1), (0, 3)], [(0, 1), (1, 0)]]),
)
def test_it_is_lax_s(batch, size, channels, window, strides, padding):
    pads = (
        lax.padtype_to_pads(size, window, strides, padding) if isinstance(padding, str) else padding
    )
    assume(all(n + sum(p) >= w for n, p, w in zip(size, pads, window, strict=True)))
    # Beyond that lax's own gradient by the image was seen to hold memory that nothing has written.
    assume(all(max(p) < w for p, w in zip(pads, window, strict=True)))
    assert_same(draw(batch, *size, channels[0]), draw(*window, *channels), strides, padding)


@pytest.mark.parametrize("channels", [3, 8, 16, 24, 32, 48, 64])
def test_it_is_lax_s_for_whole_tiles(channels):
    for strides in (1, 2):
        x, kernel = draw(3, 16, 16, channels), draw(3, 3, channels, channels)
        assert_same(x, kernel, (strides, strides), "SAME")


@pytest.mark.parametrize("channels", [(65, 8), (3, 200), (70, 130), (128, 96)])
@pytest.mark.parametrize(("batch", "size"), [(101, (8, 8)), (67, (3, 2)), (2, (20, 33))])
def test_it_is_lax_s_for_channels_that_are_cut_and_images_that_are_taken_together(
    batch, size, channels
):
    for strides in (1, 2):
        x, kernel = draw(batch, *size, channels[0]), draw(3, 2, *channels)
        assert_same(x, kernel, (strides, strides), "SAME")


@pytest.mark.parametrize("pads", [[(-1, 0), (0, -2)], [(4, 0), (5, 4)], [(-2, 3), (1, 1)]])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_it_cuts_and_pads_as_the_image_cut_and_padded_by_hand(pads, strides):
    x, kernel = draw(2, 9, 8, 3), draw(3, 2, 3, 5)

    def plain(x, kernel, strides, pads, **options):
        zero, none = jnp.zeros(()), (0, 0, 0)
        x = lax.pad(x, zero, (none, *((low, high, 0) for low, high in pads), none))
        return lax.conv_general_dilated(x, kernel, strides, "VALID", **options)

    ours = by(conv_general_dilated, x, kernel, strides, pads)
    for got, expected in zip(ours, by(plain, x, kernel, strides, pads), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
@pytest.mark.parametrize(
    ("image", "kernel", "strides", "pads", "message"),
    [
        ((2, 6, 6, 3), (3, 3, 2, 4), (1, 1), "SAME", "rhs input feature dimension"),
        ((2, 6, 6, 3), (3, 3, 64, 4), (1, 1), "SAME", "rhs input feature dimension"),
        ((2, 6, 6, 3), (3, 3, 3, 4), (1, 0), "SAME", r"at least 1, got \(1, 0\)"),
        ((2, 6, 6, 3), (3, 3, 3, 4), (-1, 1), [(1, 1), (1, 1)], "at least 1"),
        ((2, 6, 6, 3), (3, 3, 3, 4), (1,), [(1, 1), (1, 1)], "window_strides"),
        ((2, 6, 6, 3), (3, 3, 3, 4), (1, 1), [(-9, 0), (0, 0)], "Negative padding"),
        ((2, 6, 6, 3), (0, 3, 3, 4), (1, 1), "SAME", r"at least one tap, got .*\(0, 3, 3, 4\)"),
        ((2, 6, 6, 3), (3, 0, 3, 4), (1, 1), [(1, 1), (1, 1)], "at least one tap"),
    ],
)
def test_shapes_that_lax_refuses_never_reach_the_compiled_code(
    image, kernel, strides, pads, message, transform
):
    def convolve(x, kernel):
        return conv_general_dilated(x, kernel, strides, pads, **OPTIONS)

    with pytest.raises(ValueError, match=message):
        transform(convolve)(draw(*image), draw(*kernel))


def test_a_window_larger_than_the_image_sees_nothing():
    x, kernel = draw(2, 2, 2, 3), draw(3, 3, 3, 4)
    assert_same(x, kernel, (1, 1), "VALID")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 15])
@pytest.mark.parametrize("size", [3, 8, 9, 16, 20])
def test_zeros_between_blocks_change_no_bit(size, width, stride):
    """A block-diagonal kernel gives what its blocks give, not only to rounding."""
    rng = np.random.default_rng(size)
    xs = rng.normal(size=(4, 2, 5, width, size)).astype(np.float32)
    kernels = rng.normal(size=(4, 3, 3, size, size)).astype(np.float32)
    whole = np.zeros((3, 3, 4 * size, 4 * size), np.float32)
    for k in range(4):
        at = slice(k * size, (k + 1) * size)
        whole[:, :, at, at] = kernels[k]
    convolve = functools.partial(
        conv_general_dilated, window_strides=(stride, stride), padding="SAME", **OPTIONS
    )
    apart = [convolve(*pair) for pair in zip(jnp.asarray(xs), jnp.asarray(kernels), strict=True)]
    composed = convolve(jnp.concatenate(list(xs), -1), jnp.asarray(whole))
    np.testing.assert_array_equal(composed, jnp.concatenate(apart, -1))


def test_a_network_of_them_composes_exactly_and_bit_for_bit_up_to_its_head():
    network = dcjax.models.ResNet(8, 16, 10, conv_general_dilated=conv_general_dilated)
    x = draw(4, 32, 32, 3)
    stacked = dcjax.init(network, 4, jax.random.key(0), x)
    report = dcjax.verify(network, stacked, x)
    assert {layer.absolute for layer in report.layers[:-1]} == {0.0}
    assert report.error < 1e-6
    plain = dcjax.models.ResNet(8, 16, 10)
    assert dcjax.layout(network, 4, x) == dcjax.layout(plain, 4, x)
    variables = dcjax.compose(stacked)
    np.testing.assert_allclose(
        network.apply(variables, x), plain.apply(variables, x), rtol=1e-4, atol=1e-5
    )


def test_it_is_reproducible():
    x, kernel = draw(37, 16, 16, 8), draw(3, 3, 8, 16)
    first = by(conv_general_dilated, x, kernel, (1, 1), "SAME")
    for _ in range(5):
        again = by(conv_general_dilated, x, kernel, (1, 1), "SAME")
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_number_of_threads_changes_no_bit():
    """In processes that may use one processor and all of them."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    code = (
        "import os, sys\n"
        "import numpy as np\n"
        "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])\n"
        "from dcjax.native import conv_general_dilated\n"
        "from tests.test_native import by, draw\n"
        "for c, o in ((8, 16), (130, 70)):\n"
        "    x, kernel = draw(37, 8, 8, c), draw(3, 3, c, o)\n"
        "    for found in by(conv_general_dilated, x, kernel, (1, 1), 'SAME'):\n"
        "        print(hash(np.asarray(found).tobytes()))\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code, count],
            capture_output=True, text=True, cwd=ROOT, check=True,
            env=os.environ | {"PYTHONHASHSEED": "0"},
        ).stdout
        for count in ("1", "999")
    ]  # fmt: skip
    assert said[0] == said[1] != ""


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 6, 6, 4), (3, 3, 2, 4), {"feature_group_count": 2}),
        ((2, 6, 6, 4), (3, 3, 4, 4), {"rhs_dilation": (2, 2)}),
        ((2, 4, 6, 6), (5, 4, 3, 3), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    ],
)
def test_other_convolutions_are_lax_s_own(shape, kernel, options):
    options = OPTIONS | options
    args = draw(*shape), draw(*kernel), (1, 1), [(1, 1), (1, 1)]
    ours, theirs = (f(*args, **options) for f in (conv_general_dilated, lax.conv_general_dilated))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_lax_s_own(dtype):
    x, kernel = draw(2, 8, 8, 4, dtype=dtype), draw(3, 3, 4, 4, dtype=dtype)
    args = x, kernel, (1, 1), "SAME"
    ours = by(conv_general_dilated, *args)
    for got, expected in zip(ours, by(lax.conv_general_dilated, *args), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_one_and_three_dimensions_are_lax_s_own():
    for axes in (1, 3):
        conv = functools.partial(nn.Conv, 3, (2,) * axes)
        x = draw(2, *(4,) * axes, 2)
        variables = conv().init(jax.random.key(0), x)
        ours = conv(conv_general_dilated=conv_general_dilated).apply(variables, x)
        np.testing.assert_array_equal(ours, conv().apply(variables, x))


def test_it_vmaps_and_remats():
    x, kernel = draw(3, 2, 6, 6, 2), draw(3, 3, 2, 3)

    def by_kernel(function, x):
        return gradients(function, x, kernel, (1, 1), "SAME")[1]

    ours = jax.jit(jax.vmap(functools.partial(by_kernel, conv_general_dilated)))(x)
    theirs = jax.vmap(functools.partial(by_kernel, lax.conv_general_dilated))(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)

    @jax.checkpoint
    def block(x, kernel):
        return conv_general_dilated(x, kernel, (1, 1), "SAME", **OPTIONS)

    remat = jax.grad(lambda kernel: jnp.sum(jnp.sin(block(x[0], kernel))))(kernel)
    np.testing.assert_allclose(remat, theirs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_gradients_of_gradients(strides, transform):
    """Of the second and third order, as lax's."""
    x, kernel = draw(2, 7, 6, 3), draw(3, 2, 3, 4) / 4

    def penalty(function, order, x, kernel):
        if order == 1:
            return jnp.sum(jnp.sin(function(x, kernel, strides, [(1, 1), (0, 1)], **OPTIONS)))
        slopes = jax.grad(functools.partial(penalty, function, order - 1), (0, 1))(x, kernel)
        return sum(jnp.sum(jnp.cos(slope)) for slope in slopes)

    for order in (2, 3):
        ours, theirs = (
            transform(jax.grad(functools.partial(penalty, function, order), (0, 1)))(x, kernel)
            for function in (conv_general_dilated, lax.conv_general_dilated)
        )
        for got, expected in zip(ours, theirs, strict=True):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got, expected, atol=1e-5 * scale)


def test_gradients_of_gradients_of_many_images():
    """Under vmap, remat and a cut batch."""
    x, kernel = draw(4, 2, 6, 6, 2), draw(3, 3, 2, 3) / 4

    def penalty(function, kernel, x):
        block = jax.checkpoint(functools.partial(function, **OPTIONS), static_argnums=(2, 3))
        slope = jax.grad(lambda x: jnp.sum(jnp.sin(block(x, kernel, (1, 1), "SAME"))))(x)
        return jnp.sum(slope**2)

    ours, theirs = (
        jax.jit(jax.vmap(jax.grad(functools.partial(penalty, function)), (None, 0)))(kernel, x)
        for function in (conv_general_dilated, lax.conv_general_dilated)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = jnp.concatenate(list(x))
    with jax.set_mesh(mesh):
        cut = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        got = jax.jit(jax.grad(functools.partial(penalty, conv_general_dilated)))(kernel, cut)
    np.testing.assert_allclose(got, theirs.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("derivative", ["jvp", "jacfwd", "hessian"])
def test_forward_mode_is_refused_by_name(derivative):
    x, kernel = draw(1, 4, 4, 2), draw(3, 3, 2, 2)

    def cost(x):
        return jnp.sum(jnp.sin(conv_general_dilated(x, kernel, (1, 1), "SAME", **OPTIONS)))

    def run(x):
        if derivative == "jvp":
            return jax.jvp(cost, (x,), (x,))
        return getattr(jax, derivative)(cost)(x)

    with pytest.raises(TypeError, match=r"dcjax\.native\..* take jax\.lax\.conv_general_dilated"):
        run(x)
    with pytest.raises(TypeError, match=r"jvp"):  # as the program compiles, in JAX's words
        jax.jit(run)(x)


@pytest.mark.parametrize("axes", [{"devices": 4}, {"data": 2, "model": 2}])
def test_a_batch_that_is_cut_over_devices_stays_where_it_is(axes):
    devices = np.array(jax.devices()[:4]).reshape(*axes.values())
    mesh = Mesh(devices, tuple(axes))
    x, kernel = draw(32, 8, 8, 4), draw(3, 3, 4, 4)

    def all_passes(x, kernel):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return by(conv_general_dilated, x, kernel, (1, 1), "SAME")

    cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec(tuple(axes))))
    whole = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(all_passes).lower(cut, whole).compile()
    program = compiled.as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program
    assert "all-to-all" not in program
    expected = by(lax.conv_general_dilated, x, kernel, (1, 1), "SAME")
    for got, wanted in zip(compiled(cut, whole), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_it_maps_over_shards_and_devices():
    x, kernel = draw(4, 8, 8, 3), draw(3, 3, 3, 4)
    expected = by(lax.conv_general_dilated, x, kernel, (1, 1), "SAME")[0]
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    convolve = functools.partial(
        conv_general_dilated, window_strides=(1, 1), padding="SAME", **OPTIONS
    )
    data, whole = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(
        convolve, mesh=mesh, in_specs=(data, whole), out_specs=data, check_vma=False
    )
    np.testing.assert_allclose(jax.jit(sharded)(x, kernel), expected, rtol=1e-4, atol=1e-5)
    mapped = jax.pmap(convolve, in_axes=(0, None))(x.reshape(2, 2, 8, 8, 3), kernel)
    np.testing.assert_allclose(mapped.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_where_shardings_are_types_the_forward_pass_is_lax_s():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    x, kernel = draw(4, 8, 8, 3), draw(3, 3, 3, 4)
    expected = by(lax.conv_general_dilated, x, kernel, (1, 1), "SAME")[0]
    with jax.set_mesh(mesh):
        cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        got = jax.jit(functools.partial(conv_general_dilated, **OPTIONS), static_argnums=(2, 3))(
            cut, kernel, (1, 1), "SAME"
        )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_evaluation_is_spread_over_the_devices_too():
    network = dcjax.models.ResNet(8, 4, 10, conv_general_dilated=conv_general_dilated)
    recipe = dcjax.training.Recipe(dcjax.training.sgd(0.1, 1), batch_size=8)
    trainer = dcjax.training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    test = trainer.place(np.zeros((8, 16, 16, 3), np.uint8), np.zeros(8, int))
    variables = trainer.to_devices(network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))
    program = trainer.forward.lower(variables, trainer.batch(test, 0)).compile().as_text()
    # Every process reads all logits, and nothing else is gathered.
    assert re.findall(r"= ([^ {]+)\S* all-gather\(", program) == ["f32[8,10]"]


def test_flax_takes_it():
    conv = functools.partial(nn.Conv, 8, (3, 3), strides=2)
    x = draw(2, 9, 9, 3)
    variables = conv().init(jax.random.key(0), x)
    ours = conv(conv_general_dilated=conv_general_dilated).apply(variables, x)
    np.testing.assert_allclose(ours, conv().apply(variables, x), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_compiled_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_build, "SOURCE", tmp_path / "broken.cc")
    (tmp_path / "broken.cc").write_text("this is no program\n")
    with pytest.raises(NativeError, match=r"It said:\n(.|\n)*broken\.cc"):
        _build._registered.__wrapped__()
    assert [*tmp_path.rglob("*.so")] == []


@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx -mno-avx512f"])
def test_processors_with_shorter_vectors_get_the_same(flags, tmp_path):
    """As this one would compile for them; in a process of its own."""
    if platform.machine() != "x86_64":
        pytest.skip("flags of x86-64 compilers")
    code = (
        "import numpy as np, jax\n"
        "from dcjax import native\n"
        "from tests.test_native import assert_same, draw\n"
        "for c, o, s in ((3, 8, 1), (8, 8, 2), (5, 20, 1), (16, 33, 2), (70, 66, 1)):\n"
        "    assert_same(draw(2, 9, 8, c), draw(3, 3, c, o), (s, s), 'SAME')\n"
        "print(native.build())\n"
    )
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")))
    own = {"XDG_CACHE_HOME": str(tmp_path), "CXX": f"{compiler} {flags}"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env=os.environ | own, cwd=ROOT, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert str(tmp_path) in ran.stdout


def test_processes_that_compile_at_once_do_not_disturb_each_other(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = "import dcjax; print(dcjax.native.build())"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(said) == 1
    assert [str(path) for path in tmp_path.rglob("*-*")] == [*said]
