"""Check an installed dcjax and the files it came from: `check_wheel.py WHEEL SDIST`."""

import importlib.util
import re
import sys
import tarfile
import zipfile
from importlib import metadata

import jax
import numpy as np

import dcjax

wheel, sdist = sys.argv[1:]

with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
print(*sorted(names), sep="\n")
strange = [name for name in names if not re.match(r"dcjax(-[\d.]+\.dist-info)?/", name)]
assert not strange, f"the wheel holds more than dcjax: {strange}"
assert {"dcjax/py.typed", "dcjax/native/convolution.cc"} <= set(names)

with tarfile.open(sdist) as archive:
    records = [name for name in archive.getnames() if "/docs/study" in name]
assert not records, f"the sdist holds records of the study: {records}"

assert importlib.util.find_spec("experiments") is None
assert metadata.version("dcjax") == dcjax.__version__
readme = metadata.metadata("dcjax").get_payload()
relative = re.findall(r"(?:\]\(|src=\")(?!https?:|#)([^)\"]+)", readme)
assert not relative, f"README links that hold in the repository only: {relative}"

network = dcjax.models.CNN(width=8, num_classes=3)
x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
stacked = dcjax.init(network, 2, jax.random.key(1), x)
logits = network.apply(dcjax.compose(stacked), x)
subnet = dcjax.decompose(network, 2)
mean = (subnet.apply(stacked[0], x) + subnet.apply(stacked[1], x)) / 2
np.testing.assert_allclose(logits, mean, rtol=1e-5, atol=1e-5)
print(f"dcjax {dcjax.__version__} composes with jax {jax.__version__}")
