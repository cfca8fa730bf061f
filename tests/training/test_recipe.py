import pytest

from dcjax.training import steps_per_epoch


@pytest.mark.parametrize(
    ("examples", "batch_size", "steps"), [(50, 16, 3), (48, 16, 3), (16, 16, 1)]
)
def test_an_epoch_is_whole_batches(examples, batch_size, steps):
    assert steps_per_epoch(examples, batch_size) == steps


@pytest.mark.parametrize("batch_size", [0, -1, 17])
def test_an_epoch_has_a_batch(batch_size):
    with pytest.raises(ValueError, match="take a smaller batch_size"):
        steps_per_epoch(16, batch_size)
