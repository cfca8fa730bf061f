import jax
import jax.numpy as jnp
import pytest

from dcjax.training._trace import traced_once


def double(x):
    return 2 * x


def test_a_second_trace_is_an_error():
    function = jax.jit(traced_once(double))
    function(jnp.ones(3))
    function(jnp.zeros(3))
    with pytest.raises(AssertionError, match="traced > 1 times"):
        function(jnp.ones(4))


def test_two_made_by_the_same_line_are_counted_apart():
    for function in [jax.jit(traced_once(double)) for _ in range(3)]:
        assert function(1) == 2


def test_the_name_of_the_program_is_the_functions_own():
    lowered = [jax.jit(traced_once(double)).lower(1).as_text() for _ in range(2)]
    assert lowered[0] == lowered[1]
    assert "jit_double" in lowered[0]
