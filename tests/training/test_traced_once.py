import jax
import jax.numpy as jnp
import pytest

from dcjax.training._retrace_guard import traced_once


def double(x):
    return 2 * x


def test_a_second_trace_for_the_same_shapes_is_an_error():
    function = jax.jit(traced_once(double))
    function(jnp.ones(3))
    function(jnp.zeros(3))
    with (
        pytest.raises(AssertionError, match="double is traced again"),
        jax.default_matmul_precision("highest"),
    ):
        function(jnp.ones(3))


def test_other_shapes_dtypes_and_structures_are_traced_as_they_come():
    function = jax.jit(traced_once(lambda tree: jax.tree.map(double, tree)))
    for x in (jnp.ones(3), jnp.ones(4), jnp.ones(3, int), (jnp.ones(3),)):
        function(x)


def test_a_weak_type_is_another():
    function = jax.jit(traced_once(double))
    assert function(1.0) == function(jnp.float32(1.0)) == function(1.0)


def test_without_jit_nothing_is_counted():
    function = jax.jit(traced_once(double))
    with jax.disable_jit():
        assert function(jnp.ones(())) == function(jnp.ones(())) == 2


def test_what_failed_may_be_tried_again():
    fails = [True]

    def once(x):
        if fails.pop():
            raise ValueError("not now")
        return x

    function = jax.jit(traced_once(once))
    with pytest.raises(ValueError, match="not now"):
        function(jnp.ones(3))
    fails.append(False)
    assert function(jnp.ones(3)).shape == (3,)


def test_two_made_by_the_same_line_are_counted_apart():
    for function in [jax.jit(traced_once(double)) for _ in range(3)]:
        assert function(1) == 2


def test_the_name_of_the_program_is_the_functions_own():
    lowered = [jax.jit(traced_once(double)).lower(1).as_text() for _ in range(2)]
    assert lowered[0] == lowered[1]
    assert "jit_double" in lowered[0]
