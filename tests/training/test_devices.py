import collections
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcjax.training import physical_devices
from dcjax.training._devices import choose_devices
from dcjax.training._pmap import members_on


@given(st.integers(1, 300), st.integers(1, 16))
def test_the_largest_divisor_is_chosen(parts, count):
    devices = [device("cpu", number) for number in range(count)]
    divisors = [d for d in range(1, count + 1) if parts % d == 0]
    assert choose_devices(parts, devices) == tuple(devices[: divisors[-1]])


@given(st.integers(1, 300), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_each_process_gives_equally_many(parts, counts):
    processes = len(counts)
    devices = [device("cpu", n, p) for p, count in enumerate(counts) for n in range(count)]
    if parts % processes:
        with pytest.raises(ValueError, match=f"a multiple of {processes}"):
            choose_devices(parts, devices)
        return
    chosen = collections.Counter(d.process_index for d in choose_devices(parts, devices))
    fitting = [n for n in range(1, min(counts) + 1) if parts % (n * processes) == 0]
    assert chosen == dict.fromkeys(range(processes), fitting[-1])


@pytest.mark.parametrize(("subnets", "count", "used"), [(4, 3, 2), (5, 4, 1), (4, 8, 4), (1, 8, 1)])
def test_subnetworks_on_too_few_or_too_many_devices(subnets, count, used):
    assert len(choose_devices(subnets, jax.devices()[:count])) == used


def test_all_devices_by_default():
    assert choose_devices(len(jax.devices())) == tuple(jax.devices())


def test_no_devices_are_an_error():
    with pytest.raises(ValueError, match="at least one"):
        choose_devices(4, [])


def device(platform, number, process=0):
    return SimpleNamespace(platform=platform, id=number, process_index=process)


def test_the_host_devices_of_a_cpu_are_one_physical_device():
    assert physical_devices(jax.devices()) == 1
    assert physical_devices([device("cpu", n, n // 4) for n in range(8)]) == 2
    assert physical_devices([device("gpu", n) for n in range(8)]) == 8


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_get_is_the_inverse_of_put(devices):
    put, get, _ = members_on(jax.devices()[:devices], 4, "unrolled")
    tree = {
        "scalars": jnp.arange(4),
        "kernels": np.arange(24.0, dtype=np.float32).reshape(4, 3, 2),
        "keys": jax.random.split(jax.random.key(0), 4),
    }
    assert len(put(tree)["kernels"].sharding.device_set) == devices
    chex.assert_trees_all_equal(get(put(tree)), tree)


@pytest.mark.parametrize("form", ["unrolled", "vmap", "map"])
def test_a_mapped_function_sees_one_member_and_what_is_shared(form):
    put, get, map_members = members_on(jax.devices()[:2], 4, form)

    def scaled(member, pair):
        return member * pair["shared"] + pair["own"]

    function = map_members(scaled, (0, {"shared": None, "own": 0}))
    own = jnp.array([1.0, 2.0, 3.0, 4.0])
    result = get(function(put(own), {"shared": jnp.float32(10), "own": put(own)}))
    chex.assert_trees_all_equal(result, 11 * own)
