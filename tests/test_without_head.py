"""Networks without a head, such as feature extractors: composed, named, and no classifiers."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import dcjax
from dcjax import training
from experiments.settings import own

K, X = 4, jax.random.normal(jax.random.key(1), (2, 6))


class Features(nn.Module):
    width: int = 16
    classes: int = 0

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width)(x))
        return (x, nn.Dense(self.classes)(x)) if self.classes else x


@pytest.fixture(scope="module")
def stacked():
    return dcjax.init(Features(), K, jax.random.key(0), X)


def test_the_output_is_the_concatenation_and_is_called_so(stacked):
    report = dcjax.verify(Features(), stacked, X)
    assert report.concatenated == ("(2, 4 × 4)",)
    assert "output: concatenated (2, 4 × 4)" in str(report)
    assert "output: concatenated (2, 4 × 4)" in report._repr_html_()
    parts = [Features(4).apply(variables, X) for variables in stacked]
    whole = Features().apply(dcjax.compose(stacked), X)
    np.testing.assert_allclose(whole, np.concatenate(parts, axis=-1), rtol=1e-5, atol=1e-6)


def test_layouts_say_that_they_have_no_head(stacked):
    assert not stacked.layout.has_head
    assert str(stacked.layout).endswith("outputs are concatenated (K × C)")
    assert "outputs are concatenated (K × C)" in stacked._repr_html_()
    both = dcjax.layout(Features(classes=3), K, X)
    assert both.has_head
    assert "no head" not in str(both) + both._repr_html_()
    assert dcjax.layout(Features(), 1, X).has_head  # one sub-network is the global network


def test_a_second_output_is_named_too():
    def network(params, x):
        hidden = jax.nn.relu(x @ params["hidden"])
        return {"features": hidden, "logits": hidden @ params["head"]}

    def arguments(width):
        return {"hidden": np.ones((6, width)), "head": np.ones((width, 3))}, X

    sides = network, network, arguments(2), arguments(4)
    layout = dcjax.layout_of_functions(*sides, 2)
    stacked = dcjax.stack([arguments(2)[0]] * 2, like=layout)
    assert dcjax.verify_functions(*sides, stacked).concatenated == ("(2, 2 × 2)",)


def test_training_takes_features_with_a_loss_of_its_own_only(stacked):
    def trainer(**options):
        recipe = training.Recipe(optax.sgd(0.1), train_kwargs={}, **options)
        return training.side_by_side(Features(4), None, recipe, K)

    with pytest.raises(ValueError, match=r"one without a head.*such as nn\.Dense\(classes\)"):
        trainer().start(stacked, jax.random.key(0))
    trainer(loss=lambda features, labels: features.sum(-1)).start(stacked, jax.random.key(0))


def test_transfer_refuses_it_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr("dcjax.training.compile", None)
    split = np.ones((32, 6), np.float32), np.zeros(32, int)
    with pytest.raises(ValueError, match="one without a head"):
        dcjax.transfer(Features(), split, split, subnets=K, epochs=(1, 1), progress=False)


def test_a_run_refuses_it_by_its_flag():
    with pytest.raises(own.OwnError, match="--model mine:Net has no head"):
        own.check("mine:Net", Features(), K, None, X)
