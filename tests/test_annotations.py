"""The annotations of dcjax are checked while the other tests run."""

import jaxtyping
import numpy as np
import pytest
from jaxtyping import Float

import dcjax
from tests.annotations import on_return


@jaxtyping.jaxtyped(typechecker=on_return)
def halves(x: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    if len(x) % 2:
        raise ValueError("odd")
    return x.reshape(-1, 2).mean(1) if x[0] else x


def test_a_call_that_returns_is_checked():
    assert halves(np.zeros(4)).shape == (4,)
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        halves(np.ones(4))
    with pytest.raises(jaxtyping.TypeCheckError):
        halves(np.zeros(4, int))


def test_a_call_that_raises_keeps_its_error():
    with pytest.raises(ValueError, match="odd"):
        halves(np.zeros(3, int))


def test_dcjax_is_imported_under_the_hook():
    assert hasattr(dcjax.compose, "__wrapped__")
