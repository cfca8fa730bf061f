"""`dcjax.transfer` on small images: what it returns is what the stages give by themselves."""

import math

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import dcjax

NETWORK = dcjax.models.CNN(width=8, num_classes=3, stages=1, convolutions=1)
SHORT = {"subnets": 2, "epochs": (3, 2), "batch_size": 16, "learning_rate": 0.02, "progress": False}


def split(count, seed, dtype=np.uint8):
    """Images whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 100, (count, 8, 8, 3)) + 70 * labels[:, None, None, None]
    return images.astype(dtype), labels


TRAIN, TEST = split(96, 0), split(40, 1)


@pytest.fixture(scope="module")
def result():
    return dcjax.transfer(NETWORK, TRAIN, TEST, baseline=True, **SHORT)


def accuracy(probabilities):
    return float(np.mean(probabilities.argmax(-1) == TEST[1]))


def test_it_learns_and_predicts_what_its_history_says(result):
    history, predict = result.history, result.model.predict
    assert accuracy(result.predict(TEST[0])) == history["finetune"]["accuracy"] > 0.8
    assert accuracy(predict(TEST[0], "composed")) == history["composed"]["accuracy"]
    assert accuracy(predict(TEST[0], "baseline")) == history["baseline"]["accuracy"]
    each = [accuracy(p) for p in predict(TEST[0], "subnets")]
    assert each == history["subnets"]["accuracy"]
    np.testing.assert_allclose(result.predict(TEST[0]).sum(-1), 1, rtol=1e-12)


def test_the_composed_network_keeps_its_bounds(result):
    bounds, composed = result.bounds, result.history["composed"]
    assert bounds.cost_lower <= bounds.cost <= bounds.cost_upper
    assert bounds.accuracy_lower <= bounds.accuracy <= bounds.accuracy_upper
    assert composed["cost"] == pytest.approx(float(bounds.cost), rel=1e-4)
    assert result.report.error < 1e-5


def test_what_is_saved_predicts_the_same(result, tmp_path):
    result.save(tmp_path)
    model = dcjax.load_run(tmp_path)
    for which in ("subnets", "composed", "finetuned", "baseline"):
        expected = result.model.predict(TEST[0], which)
        np.testing.assert_array_equal(model.predict(TEST[0], which), expected)
    card = (tmp_path / "README.md").read_text()
    assert f"{100 * result.history['finetune']['accuracy']:.2f} %" in card


def test_weights_of_another_save_are_refused(result, tmp_path):
    result.save(tmp_path)
    (tmp_path / "composed.safetensors").replace(tmp_path / "finetuned.safetensors")
    with pytest.raises(ValueError, match=r"finetuned.safetensors is damaged, or not .* SHA-256"):
        dcjax.load_run(tmp_path).predict(TEST[0])


def test_history_is_of_plain_numbers(result):
    assert list(result.history) == ["subnets", "composed", "finetune", "baseline"]
    assert [entry["epoch"] for entry in result.history["finetune"]["curve"]] == [0, 1, 2]
    assert result.history["baseline"]["epochs"] == 5
    leaves = jax.tree.leaves(result.history)
    assert {type(leaf) for leaf in leaves} <= {int, float}
    assert "finetune" in repr(result)


def test_images_of_another_kind_are_refused(result):
    with pytest.raises(ValueError, match=r"expected images uint8\(N, 8, 8, 3\)"):
        result.predict(TEST[0].astype(np.float32))
    with pytest.raises(ValueError, match="as for training, got uint8"):
        result.predict(TEST[0][0])


def test_the_same_call_resumes_and_another_is_refused(tmp_path, monkeypatch):
    call = {**SHORT, "folder": tmp_path}
    expected = dcjax.transfer(NETWORK, TRAIN, TEST, **SHORT)

    class Interrupted(Exception):
        pass

    def interrupt(*args, **kwargs):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(dcjax.method.Road, "train_global", interrupt)
        with pytest.raises(Interrupted):
            dcjax.transfer(NETWORK, TRAIN, TEST, **call)
    with monkeypatch.context() as patch:
        patch.setattr(dcjax.training, "fit", interrupt)  # what is trained is not trained again
        with pytest.raises(Interrupted):
            dcjax.transfer(NETWORK, TRAIN, TEST, **call)
    resumed = dcjax.transfer(NETWORK, TRAIN, TEST, **call)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, expected.variables)
    assert resumed.report.error == expected.report.error
    with pytest.raises(ValueError, match=r"holds another run:\n  seed: 0 there, 1 here"):
        dcjax.transfer(NETWORK, TRAIN, TEST, **call, seed=1)


class Tokens(nn.Module):
    """A network whose call takes `deterministic`, and not `train`."""

    features: int = 8

    @nn.compact
    def __call__(self, x, *, deterministic):
        x = nn.Embed(20, self.features)(x).mean(1)
        x = nn.Dropout(0.1, deterministic=deterministic)(nn.relu(nn.Dense(self.features)(x)))
        return nn.Dense(2)(x)


def test_any_network_optimiser_and_arrays(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 20, (80, 6))
    labels = (tokens < 10).mean(1) > 0.5
    pair = tokens, labels.astype(int)
    result = dcjax.transfer(
        Tokens(), pair, pair, 4, fields=("features",), optimizer=optax.adam(1e-2), progress=False
    )
    assert result.history["finetune"]["accuracy"] > 0.8
    expected = result.predict(tokens[:3])
    result.save(tmp_path)
    with pytest.raises(ValueError, match=r"its network is tests\..*Tokens, which is not imported"):
        dcjax.load_run(tmp_path)
    there = dcjax.load_run(tmp_path, network=Tokens())
    np.testing.assert_array_equal(there.predict(tokens[:3]), expected)


def test_floats_are_normalised_as_pixels_are():
    scaled = [(images.astype(np.float64) / 255, labels) for images, labels in (TRAIN, TEST)]
    one, other = (dcjax.transfer(NETWORK, *data, **SHORT) for data in ((TRAIN, TEST), scaled))
    np.testing.assert_allclose(
        one.predict(TEST[0]), other.predict(scaled[1][0]), rtol=0.02, atol=1e-3
    )


def test_an_optimiser_whose_state_does_not_compose_starts_anew():
    with pytest.warns(RuntimeWarning, match="fine-tuning starts the optimiser anew"):
        result = dcjax.transfer(NETWORK, TRAIN, TEST, optimizer=optax.adagrad(0.05), **SHORT)
    assert result.history["finetune"]["accuracy"] > 0.6


def test_a_subnetwork_that_diverges_is_named():
    with pytest.raises(FloatingPointError, match=r"the loss of sub-network 0, 1 became NaN"):
        dcjax.transfer(NETWORK, TRAIN, TEST, optimizer=optax.sgd(1e30), **SHORT)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": TRAIN[0]}, "train must be a pair"),
        ({"train": (TRAIN[0].astype(int), TRAIN[1])}, "train images are int64"),
        ({"train": (TRAIN[0], TRAIN[1][1:])}, "expected integer labels, one for each image"),
        ({"train": (TRAIN[0], TRAIN[1] + 1)}, "the network has 3 classes, .* got 3 in train"),
        ({"test": (TEST[0], TEST[1] + 1)}, "the network has 3 classes, .* got 3 in test"),
        ({"test": (TEST[0][:, :6], TEST[1])}, r"alike, got uint8\(N, 8, 8, 3\) and uint8\(N, 6, 8"),
        ({"train": (TRAIN[0][:0], TRAIN[1][:0])}, r"train must hold images, got uint8\(0, 8, 8, 3"),
        ({"test": (TEST[0][:0], TEST[1][:0])}, "test must hold images"),
        ({"train": (TRAIN[0], TRAIN[1].astype(str))}, "train labels must be integers from 0 on"),
        ({"test": (TEST[0], TEST[1] / 2)}, "test labels must be integers from 0 on, got float64"),
        ({"epochs": (0, 1)}, r"expected epochs=\(of the sub-networks, of fine-tuning\)"),
        ({"epochs": 1}, r"expected epochs=\(of the sub-networks, of fine-tuning\)"),
        ({"epochs": (1.5, 1)}, r"fine-tuning\), integers from 1 and from 0 on, got \(1.5, 1\)"),
        ({"epochs": (1, 1, 1)}, r"expected epochs=\(of the sub-networks, of fine-tuning\)"),
        ({"batch_size": 0}, "expected a batch_size of 1 or more, got 0"),
        ({"batch_size": 97}, "take a smaller batch_size"),
        ({"network": lambda x: x}, "instance of a Flax Linen module"),
        ({"learning_rate": -0.1}, "a learning_rate above 0 and finite, got -0.1"),
        ({"learning_rate": math.nan}, "a learning_rate above 0 and finite, got nan"),
        ({"optimizer": {}}, r"optimizer=\) must be an optax transformation"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_trained(wrong, message, monkeypatch):
    monkeypatch.setattr("dcjax.training.compile", None)
    call = {"network": NETWORK, "train": TRAIN, "test": TEST} | SHORT | wrong
    with pytest.raises((TypeError, ValueError), match=message):
        dcjax.transfer(**call)


def test_images_with_nan_are_refused():
    images = np.full(TRAIN[0].shape, np.nan, np.float32)
    with pytest.raises(ValueError, match="the training images hold NaN"):
        dcjax.transfer(NETWORK, (images, TRAIN[1]), (images, TRAIN[1]), **SHORT)
    finite = np.ones_like(images)
    with pytest.raises(ValueError, match="the test images hold NaN"):
        dcjax.transfer(NETWORK, (finite, TRAIN[1]), (images, TRAIN[1]), **SHORT)
