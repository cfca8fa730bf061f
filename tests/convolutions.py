"""Random convolutions, valid and invalid, against NumPy; run as a program, under sanitizers too."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.native import build, conv_general_dilated
from dcjax.native._build import target

LAYOUT = ("NHWC", "HWIO", "NHWC")
# The places among x, kernel, y of each pass's arguments and its result.
OPERANDS = {"forward": (0, 1, 2), "by_image": (2, 1, 0), "by_kernel": (0, 2, 1)}


def in_numpy(x, kernel, g, strides, pads):
    """Return y, and the gradients of sum(y · g) by x and by the kernel, tap by tap.

    JAX's own convolution on the CPU is wrong for negative padding with strides.
    """
    x, kernel, g = (np.asarray(a, np.float64) for a in (x, kernel, g))
    y, by_x, by_kernel = np.zeros_like(g), np.zeros_like(x), np.zeros_like(kernel)
    for i, j in np.ndindex(kernel.shape[:2]):
        rows = strides[0] * np.arange(g.shape[1]) + i - pads[0][0]
        columns = strides[1] * np.arange(g.shape[2]) + j - pads[1][0]
        p = np.flatnonzero((rows >= 0) & (rows < x.shape[1]))[:, None]
        q = np.flatnonzero((columns >= 0) & (columns < x.shape[2]))
        seen = x[:, rows[p], columns[q]]
        y[:, p, q] += seen @ kernel[i, j]
        by_x[:, rows[p], columns[q]] += g[:, p, q] @ kernel[i, j].T
        by_kernel[i, j] = np.einsum("npqc,npqo->co", seen, g[:, p, q])
    return y, by_x, by_kernel


def output_size(size, window, stride, low, high):
    padded = size + low + high
    return 0 if padded < window else (padded - window) // stride + 1


def agree(x, kernel, y, strides, padding):
    """Whether the compiled passes have to take these sizes."""
    if [len(x), len(kernel), len(y), len(strides), len(padding)] != [4, 4, 4, 2, 4]:
        return False
    if min(strides) < 1 or max(strides) > 2**40 or max(map(abs, padding)) > 2**40:
        return False
    if any(math.prod(size or 1 for size in shape) > 2**40 for shape in (x, kernel, y)):
        return False
    if min(kernel[:2]) < 1 or x[0] != y[0] or x[3] != kernel[2] or y[3] != kernel[3]:
        return False
    sides = [(x[1 + axis], *padding[2 * axis : 2 * axis + 2]) for axis in (0, 1)]
    if any(sum(side) < 0 for side in sides):
        return False
    return all(
        y[1 + axis] == output_size(size, kernel[axis], strides[axis], low, high)
        for axis, (size, low, high) in enumerate(sides)
    )


def valid(rng):
    """Return sizes that agree: x, kernel, y, strides, padding."""
    while True:
        many = 140 if rng.random() < 0.1 else 40
        images = int(rng.choice([0, 1, 2, 3, 5, 70], p=[0.05, 0.3, 0.3, 0.15, 0.15, 0.05]))
        x = (images, *rng.integers(0, 14, 2), rng.integers(0, many))
        kernel = (*rng.integers(1, 6, 2), x[3], rng.integers(0, many))
        strides = tuple(int(rng.choice([1, 2, 3, 7, 10**6])) for _ in range(2))
        padding = tuple(rng.integers(-4, 9, 4))
        if rng.random() < 0.05:  # far beside the image
            padding = (10**9, 5 - 10**9, *padding[2:])
        sides = [
            output_size(x[1 + axis], kernel[axis], strides[axis], *padding[2 * axis :][:2])
            for axis in (0, 1)
        ]
        sizes = [x, kernel, (x[0], *sides, kernel[3]), strides, padding]
        sizes = [tuple(map(int, group)) for group in sizes]
        if agree(*sizes):
            return sizes


def spoilt(rng):
    """Return sizes of which one or a few were changed, mostly so that they do not agree."""
    sizes = valid(rng)
    for _ in range(rng.integers(1, 4)):
        group = rng.integers(0, 5)
        changed = list(sizes[group])
        if rng.random() < 0.1:
            sizes[group] = tuple(changed[:-1] if rng.random() < 0.5 else [*changed, 1])
            continue
        place = rng.integers(0, len(changed))
        if group < 3:
            changed[place] = max(0, changed[place] + int(rng.choice([-9, -1, 1, 2, 60])))
        else:
            extremes = [-(2**63), -(2**40) - 1, -1, 0, 1, 2**31, 2**40 + 1, 2**62, 2**63 - 1]
            changed[place] = int(rng.choice(extremes))
        sizes[group] = tuple(changed)
    return sizes


def call(name, sizes, arrays):
    """Run one pass on arrays of any sizes; return XLA's error or None."""
    *shapes, strides, padding = sizes
    first, second, result = OPERANDS[name]
    shape = jax.ShapeDtypeStruct(shapes[result], jnp.float32)
    attributes = {"strides": np.array(strides, np.int64), "padding": np.array(padding, np.int64)}
    try:
        run = jax.ffi.ffi_call(target(name), shape)
        jax.block_until_ready(run(arrays[first], arrays[second], **attributes))
    except jax.errors.JaxRuntimeError as error:
        return str(error)
    return None


def compare(rng):
    """Compare the three passes with NumPy's, on sizes that agree."""
    x, kernel, y, strides, padding = valid(rng)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in (x, kernel, y)]
    pads = [padding[:2], padding[2:]]
    result, pullback = jax.vjp(
        lambda x, kernel: conv_general_dilated(x, kernel, strides, pads, dimension_numbers=LAYOUT),
        *map(jnp.asarray, arrays[:2]),
    )
    found = result, *pullback(jnp.asarray(arrays[2]))
    for got, expected in zip(found, in_numpy(*arrays, strides, pads), strict=True):
        assert got.shape == expected.shape, (got.shape, expected.shape)
        scale = np.abs(expected).max(initial=1)
        np.testing.assert_allclose(
            got, expected, atol=1e-5 * scale, err_msg=str((x, kernel, strides, pads))
        )


def refuse(rng):
    """Call the three passes on sizes that may not agree; return how many calls were refused."""
    sizes, refused = spoilt(rng), 0
    arrays = [jnp.zeros(shape, jnp.float32) for shape in sizes[:3]]
    for name, places in OPERANDS.items():
        if 0 in sizes[places[-1]]:
            continue  # XLA does not call what computes no element
        error = call(name, sizes, arrays)
        assert (error is None) == agree(*sizes), (name, sizes, error)
        assert error is None or "INVALID_ARGUMENT" in error, (name, sizes, error)
        refused += error is not None
    return refused


def run(count, seed):
    """Return the numbers of comparisons and refusals in so many cases of each kind."""
    build()
    refused = 0
    for case in range(count):
        rng = np.random.default_rng([seed, case])
        compare(rng)
        refused += refuse(rng)
    return 3 * count, refused


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    print(*run(*map(int, sys.argv[1:])))
