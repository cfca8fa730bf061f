import functools
import inspect
import time

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcjax import training
from tests.training.compilations import compilations


@pytest.fixture(params=["side_by_side", "data_parallel"])
def case(request, study):
    """A trained run of either kind, and the variables it started from."""
    run = request.getfixturevalue(request.param)(4)
    side = request.param == "side_by_side"
    variables = study.variables if side else jax.tree.map(lambda leaf: leaf[0], study.variables)
    return run, variables


def state_bits(run, state):
    state = run.trainer.to_host(state)
    return state._replace(key=jax.random.key_data(state.key))


def test_the_history_has_every_loss(case):
    run, _ = case
    lead = run.trainer.lead
    history = run.fitted.history
    assert [epoch.epoch for epoch in history] == [1, 2]
    for epoch in history:
        assert epoch.losses.shape == (3, *lead)
        assert np.isfinite(epoch.losses).all()
        assert epoch.device_seconds == epoch.seconds  # host devices of one CPU are one
    assert 0 < history[0].seconds < history[1].seconds
    assert (np.ravel(run.trainer.to_host(run.fitted.state).step) == 6).all()


def test_a_run_goes_on_where_it_was_bitwise(case, study):
    """From a state on the host, in the middle of an epoch: state alone determines the rest."""
    run, variables = case
    saved = {}

    def save(step, state):
        saved[step] = run.trainer.to_host(state)

    state = run.trainer.start(variables, study.key)
    training.fit(run.trainer, state, run.train, epochs=2, on_step=save)
    for step in (2, 3):
        resumed = training.fit(
            run.trainer, run.trainer.to_devices(saved[step]), run.train, epochs=2
        )
        assert sum(len(epoch.losses) for epoch in resumed.history) == 6 - step
        chex.assert_trees_all_equal(
            state_bits(run, resumed.state), state_bits(run, run.fitted.state)
        )


def test_records_within_epochs_change_nothing_else(case, study):
    run, variables = case
    seen = []
    fitted = training.fit(
        run.trainer,
        run.trainer.start(variables, study.key),
        run.train,
        epochs=2,
        every=2,
        on_epoch=lambda record, state: seen.append(run.trainer.to_host(state).step.max()),
    )
    records = fitted.history
    assert [(each.epoch, each.step) for each in records] == [(1, 2), (1, 3), (2, 4), (2, 6)]
    assert seen == [2, 3, 4, 6]
    losses = [np.concatenate([each.losses for each in h]) for h in (records, run.fitted.history)]
    np.testing.assert_array_equal(*losses)
    chex.assert_trees_all_equal(state_bits(run, fitted.state), state_bits(run, run.fitted.state))


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ({"every": 0}, ValueError, "epochs >= 0 and every >= 1, got 2 and 0"),
        ({"every": 2.5}, TypeError, r"\bint"),
        ({"epochs": -1}, ValueError, "epochs >= 0 and every >= 1, got -1 and None"),
        ({"epochs": 1.5}, TypeError, r"\bint"),
        ({"epochs": None}, TypeError, r"\bint"),
    ],
    ids=str,
)
def test_counts_are_integers_in_their_range(case, counts, error, message):
    run, _ = case
    with pytest.raises(error, match=message):
        training.fit(run.trainer, run.fitted.state, run.train, **{"epochs": 2} | counts)


def test_a_loss_that_becomes_nan_is_one_warning(study):
    recipe = study.recipe._replace(optimizer=optax.sgd(jnp.nan), batch_size=16)
    trainer = training.data_parallel(study.network, study.samples, recipe)
    train = trainer.place(*study.train)
    state = trainer.start(jax.tree.map(lambda leaf: leaf[0], study.variables), study.key)
    fit = inspect.unwrap(training.fit)  # the warning names the caller of fit itself
    with pytest.warns(RuntimeWarning) as said:
        fit(trainer, state, train, epochs=2)
    (warning,) = said
    assert str(warning.message).startswith("the loss became NaN or infinite: step 2;")
    assert warning.filename == __file__


def test_the_sub_networks_whose_losses_become_nan_are_named(study):
    trainer = training.side_by_side(
        study.network, study.samples, study.recipe, 4, members=(1, 2, 3)
    )
    variables = jax.tree.map(lambda leaf: leaf[1:], study.variables)
    bad = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), variables)
    with pytest.warns(RuntimeWarning, match=r"infinite: sub-network 2 at step 1; a lower") as said:
        training.fit(trainer, trainer.start(bad, study.key), trainer.place(*study.train), epochs=2)
    assert len(said) == 1


def test_a_run_that_is_done_stays_as_it_is(case, study):
    run, _ = case
    state = run.trainer.to_devices(run.trainer.to_host(run.fitted.state))
    fitted = training.fit(run.trainer, state, run.train, epochs=2)
    assert fitted.history == []
    chex.assert_trees_all_equal(state_bits(run, fitted.state), state_bits(run, run.fitted.state))


def test_callbacks_see_the_steps_and_the_epochs(case, study):
    run, variables = case
    steps, epochs = [], []
    fitted = training.fit(
        run.trainer,
        run.trainer.start(variables, study.key),
        run.train,
        epochs=2,
        on_epoch=lambda record, state: epochs.append(
            (record, training.evaluate(run.trainer, state, run.test))
        ),
        on_step=lambda step, state: steps.append(step),
    )
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [record for record, _ in epochs] == fitted.history
    last = training.evaluate(run.trainer, fitted.state, run.test)
    chex.assert_trees_all_equal(epochs[-1][1], last)
    assert not np.array_equal(epochs[0][1], last)


def test_the_time_between_epochs_is_not_trainings(case, study, monkeypatch):
    """By a clock that moves by a second a step, and by a thousand between two epochs."""
    run, variables = case
    now = [0.0]

    def move(seconds):
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    fitted = training.fit(
        run.trainer,
        run.trainer.start(variables, study.key),
        run.train,
        epochs=2,
        on_epoch=lambda record, state: move(1000),
        on_step=lambda step, state: move(1),
    )
    assert [epoch.seconds for epoch in fitted.history] == [3.0, 6.0]
    assert fitted.compile_seconds == 0


def test_evaluation_counts_the_last_incomplete_batch(case, study):
    run, _ = case
    logits = training.evaluate(run.trainer, run.fitted.state, run.test)
    images, labels = study.test
    assert logits.shape == (*run.trainer.lead, len(labels), 3)
    x = study.recipe.normalise(jnp.asarray(images))
    plain = run.trainer.finish(run.fitted.state)

    apply = functools.partial(study.network.apply, train=False)
    apply = jax.vmap(apply, (0, None)) if run.trainer.lead else apply
    chex.assert_trees_all_close(logits, np.asarray(apply(plain, x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("examples", [1, 15, 16, 17])
def test_a_split_of_any_size_is_evaluated_by_the_same_program(case, study, examples):
    run, _ = case
    images, labels = study.test
    whole = training.evaluate(run.trainer, run.fitted.state, run.test)
    part = run.trainer.place(images[:examples], labels[:examples])
    logits = training.evaluate(run.trainer, run.fitted.state, part)
    chex.assert_trees_all_equal(logits, whole[..., :examples, :])


def test_fit_compiles_and_says_how_long_it_took(study):
    trainer = training.data_parallel(study.network, study.samples, study.recipe)
    variables = jax.tree.map(lambda leaf: leaf[0], study.variables)
    train = trainer.place(*study.train)
    state = trainer.start(variables, study.key)
    with compilations() as found:
        fitted = training.fit(trainer, state, train, epochs=1)
    assert len(found) >= 2  # the order of the examples, and the step
    assert fitted.compile_seconds > sum(found)
    again = training.fit(trainer, fitted.state, train, epochs=2)  # does not trace again
    assert len(again.history) == 1
    other = trainer.place(*study.test)  # of another size: compiled anew
    assert len(training.fit(trainer, again.state, other, epochs=9).history) > 0


def test_a_trainer_outlives_a_failed_try(study):
    """As in a notebook: what was wrong is put right, and the same trainer is used again."""
    trainer = training.data_parallel(study.network, study.samples, study.recipe)
    variables = jax.tree.map(lambda leaf: leaf[0], study.variables)
    images, labels = study.train
    grey = trainer.place(images[..., :1], labels)
    with pytest.raises(flax.errors.ScopeParamShapeError):
        training.fit(trainer, trainer.start(variables, study.key), grey, epochs=1)
    train = trainer.place(images, labels)
    assert training.fit(trainer, trainer.start(variables, study.key), train, epochs=1).history


def test_a_compiled_trainer_is_not_compiled_again(case, study):
    run, variables = case
    state = run.trainer.start(variables, study.key)
    trainer, _ = training.compile(run.trainer, state, run.train, run.test)
    assert trainer.step is run.trainer.step
    assert trainer.forward is run.trainer.forward


def test_parameters_alone_are_refused(case, study):
    run, variables = case
    with pytest.raises(ValueError, match=r"got \['BatchNorm_0', 'Conv_0', 'Dense_0'\]"):
        run.trainer.start(variables["params"], study.key)


def test_too_few_examples_are_refused(case, study):
    run, variables = case
    train = run.trainer.place(study.train[0][:15], study.train[1][:15])
    state = run.trainer.start(variables, study.key)
    with pytest.raises(ValueError, match="15 examples; take a smaller batch_size"):
        training.fit(run.trainer, state, train, epochs=1)


@pytest.mark.parametrize(
    "labels",
    [np.zeros(3, np.int32), np.zeros(4, np.float32), np.zeros((4, 1), np.int32)],
)
def test_labels_are_integers_one_for_each_image(case, labels):
    run, _ = case
    with pytest.raises(ValueError, match=r"integer labels, one for each image.*\(4,\)"):
        run.trainer.place(np.zeros((4, 8, 8, 3), np.uint8), labels)


@pytest.mark.parametrize("label", [-1, 2**32 + 1])
def test_labels_are_class_numbers(case, label):
    run, _ = case
    with pytest.raises(ValueError, match=rf"class numbers from 0 on as labels, got {label}"):
        run.trainer.place(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, label, 2]))


def test_a_split_has_images(case):
    run, _ = case
    with pytest.raises(ValueError, match="at least one image"):
        run.trainer.place(np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, np.int32))


def test_validation_and_progress(study, side_by_side, data_parallel, capsys):
    for run, lead in ((side_by_side(4), (4,)), (data_parallel(1), ())):
        state = run.trainer.start(
            study.variables if lead else jax.tree.map(lambda x: x[0], study.variables), study.key
        )
        fitted = training.fit(run.trainer, state, run.train, 2, validation=run.test, progress=True)
        logits = training.evaluate(run.trainer, fitted.state, run.test)
        last, labels = fitted.history[-1], study.test[1]
        np.testing.assert_array_equal(last.accuracy, (logits.argmax(-1) == labels).mean(-1))
        spread = np.broadcast_to(labels, logits.shape[:-1])
        expected = optax.softmax_cross_entropy_with_integer_labels(logits, spread).mean(-1)
        np.testing.assert_allclose(last.validation_loss, expected, rtol=1e-5)
        assert last.accuracy.shape == lead
        lines = capsys.readouterr().err.splitlines()
        assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
        first = f"{100 * np.atleast_1d(last.accuracy)[0]:.1f}"
        assert f"accuracy {first}" in lines[1]


def test_probabilities_need_no_labels(study, side_by_side):
    run = side_by_side(4)
    found = training.predict(run.trainer, run.fitted.state, study.test[0])
    logits = training.evaluate(run.trainer, run.fitted.state, run.test)
    np.testing.assert_allclose(found, jax.nn.softmax(logits), rtol=1e-5)
