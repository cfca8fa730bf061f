"""The compiled passes against NumPy, and sizes that they refuse; the long form under sanitizers."""

import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dcjax
from tests import convolutions
from tests.long import SEED

ROOT = pathlib.Path(dcjax.__file__).parents[1]
CASES = int(os.environ.get("DCJAX_FUZZ_CASES", "150"))
AGREE = [(2, 6, 6, 3), (3, 3, 3, 4), (2, 6, 6, 4), (1, 1), (1, 1, 1, 1)]


pytestmark = pytest.mark.usefixtures("built")


def test_random_sizes_give_what_numpy_gives_or_are_refused():
    compared, refused = convolutions.run(15, SEED)
    assert compared == 45
    assert refused > 15


@pytest.mark.parametrize(
    ("group", "sizes", "message"),
    [
        (0, (2, 6, 6, 5), "C of the kernel to equal C of x"),
        (0, (3, 6, 6, 3), "N of y to equal N of x"),
        (0, (2, 7, 6, 3), "h = (H + top + bottom - kh) / stride + 1 = 7, got x"),
        (1, (3, 3, 2, 4), "C of the kernel to equal C of x"),
        (1, (3, 3, 3, 64), "O of y to equal O of the kernel"),
        (1, (0, 3, 3, 4), "at least one tap"),
        (1, (3, 0, 3, 4), "at least one tap"),
        (1, (3, 2, 3, 4), "w = (W + left + right - kw) / stride + 1 = 7, got x"),
        (2, (2, 6, 7, 4), "w = (W + left + right - kw) / stride + 1 = 6, got x"),
        (2, (1, 6, 6, 4), "N of y to equal N of x"),
        (3, (0, 1), "strides from 1 to 2^40"),
        (3, (1, -1), "strides from 1 to 2^40"),
        (3, (2**62, 1), "strides from 1 to 2^40"),
        (3, (2, 1), "/ stride + 1 = 3"),
        (3, (1,), "two strides and four sizes of padding"),
        (4, (1, 1, 1), "two strides and four sizes of padding"),
        (4, (-4, -3, 1, 1), "padding that cuts no more than the image has"),
        (4, (2**63 - 1, 2**63 - 1, 1, 1), "padding from -2^40 to 2^40"),
        (4, (-(2**63), 1, 1, 1), "padding from -2^40 to 2^40"),
        (4, (2**40, 5 - 2**40, 1, 1), "/ stride + 1 = 9"),
        (0, (2, 6, 6), "Wrong buffer rank: expected 4 but got 3"),
        (2, (2, 6, 6, 4, 1), "Wrong buffer rank: expected 4 but got 5"),
    ],
)
@pytest.mark.parametrize("name", convolutions.OPERANDS)
def test_every_pass_refuses_sizes_that_do_not_agree(name, group, sizes, message):
    wrong = [*AGREE[:group], sizes, *AGREE[group + 1 :]]
    if 0 in wrong[convolutions.OPERANDS[name][2]]:
        pytest.skip("XLA does not call what computes no element")
    arrays = [jnp.ones(shape) for shape in wrong[:3]]
    assert convolutions.call(name, AGREE, [jnp.ones(shape) for shape in AGREE[:3]]) is None
    error = convolutions.call(name, wrong, arrays)
    assert error is not None
    assert error.startswith("INVALID_ARGUMENT")
    assert message in error


@pytest.mark.parametrize("name", convolutions.OPERANDS)
def test_a_frame_whose_elements_could_overflow_is_refused(name):
    far = [(1, 4, 4, 1), (1, 1, 1, 1), (1, 2, 2, 1), (2**39, 2**39), (2**39 - 3, 0) * 2]
    error = convolutions.call(name, far, [jnp.ones(shape) for shape in far[:3]])
    assert error is not None
    assert "at most 2^40 elements in its frame" in error


@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        ((jnp.float16, jnp.float32), "expected F32 but got F16"),
        ((jnp.float32, jnp.int32), "expected F32 but got S32"),
    ],
)
def test_other_dtypes_are_refused(dtypes, message):
    arrays = [jnp.ones(shape, dtype) for shape, dtype in zip(AGREE, dtypes, strict=False)]
    assert message in convolutions.call("forward", AGREE, [*arrays, None])


def test_padding_far_beside_the_image_costs_no_memory():
    """The gradients are zero there; they once took frames as large as the padding."""
    x, kernel = (np.ones(shape, np.float32) for shape in ((1, 4, 4, 2), (3, 3, 2, 2)))
    for top in (10**11, -(10**11)):
        strides, pads = (1, 10**9), [(top, 4 - top), (1, 1)]
        y = np.ones((1, 6, 1, 2), np.float32)
        _, pullback = jax.vjp(
            lambda x, kernel, strides=strides, pads=pads: dcjax.native.conv_general_dilated(
                x, kernel, strides, pads, dimension_numbers=convolutions.LAYOUT
            ),
            *map(jnp.asarray, (x, kernel)),
        )
        for found in pullback(jnp.asarray(y)):
            np.testing.assert_array_equal(found, 0)


def sanitizers():
    """Return the compiler's command with sanitizers, and the libraries to load before Python's."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++")), None)
    if platform.system() != "Linux" or compiler is None:
        pytest.skip("the sanitizers are tried with GCC on Linux only")
    asked = [[*compiler.split(), f"-print-file-name={name}"] for name in PRELOADED]
    found = [
        subprocess.run(words, capture_output=True, text=True).stdout.strip() for words in asked
    ]
    for name, path in zip(PRELOADED, found, strict=True):
        if not pathlib.Path(path).is_absolute():
            pytest.skip(f"{compiler} has no {name}")
    return f"{compiler} -fsanitize=address,undefined -fno-sanitize-recover=all", " ".join(found)


# The sanitizer has to come first; it looks for libstdc++'s exceptions as it starts.
PRELOADED = ("libasan.so", "libubsan.so", "libstdc++.so")


@pytest.mark.long
@pytest.mark.parametrize("flags", ["", "-mno-avx512f"])  # without AVX, GCC rejects the asm here
def test_sanitizers_find_nothing(flags, tmp_path):
    """Random sizes, valid and invalid, in a process that checks every address."""
    compiler, preloaded = sanitizers()
    if flags and platform.machine() != "x86_64":
        pytest.skip("flags of x86-64 compilers")
    own = {
        "CXX": f"{compiler} {flags}",
        "XDG_CACHE_HOME": str(tmp_path),
        "LD_PRELOAD": preloaded,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONPATH": str(ROOT),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "tests.convolutions", str(CASES), str(SEED)],
        capture_output=True, text=True, env=os.environ | own, cwd=ROOT, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[:5000]
    compared, refused = map(int, re.findall(r"\d+", ran.stdout))
    print(f"{compared} passes compared with NumPy's, {refused} refused")
    assert compared == 3 * CASES
    assert refused > CASES
