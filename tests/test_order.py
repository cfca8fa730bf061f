"""Orders: their normal form, their places, and the solving of equations between unknown ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcjax import Order, Run
from dcjax._tracing.unify import SUBNETS, Conflict, Fixed, Orders, Size, Units, repeat, scale

runs = st.lists(st.builds(Run, st.integers(1, 3), st.booleans()), min_size=1, max_size=4)
orders = st.builds(Order, runs.map(tuple), st.integers(1, 3))


@given(orders, st.integers(2, 4))
def test_places_are_a_bijection(order, subnets):
    places = order.indices(subnets)
    assert places.shape == (subnets, order.narrow)
    shared = (places == places[0]).all(axis=0)
    split = places[:, ~shared].ravel()
    everything = np.sort(np.concatenate([split, places[0, shared]]))
    np.testing.assert_array_equal(everything, np.arange(order.width(subnets)))


@given(orders, orders)
def test_equal_orders_are_those_with_equal_places(left, right):
    same = left.narrow == right.narrow and np.array_equal(left.indices(3), right.indices(3))
    # One unit shared by all or split: with K = 3 the widths tell them apart.
    assert (left == right) == same
    assert left != right or hash(left) == hash(right)


def test_repeats_are_found():
    assert Order((Run(2), Run(2), Run(2))) == Order((Run(2),), repeat=3)
    assert Order((Run(1, True), Run(2, True)), repeat=2) == Order((Run(6, True),))
    assert str(Order((Run(2),), repeat=3)) == "3×K×2"


def axis(unknown, narrow, subnets=4):
    return unknown.fresh(Size(narrow, subnets * narrow))


def test_a_split_decides_an_unknown():
    solver = Orders(4)
    whole, left, right = axis(solver, 6), axis(solver, 2), axis(solver, 4)
    solver.unify(whole, left + right)
    assert solver.settle(whole) == Order((Run(2), Run(4)))
    assert solver.settle(left) == Order((Run(2),))


def test_a_flatten_repeats():
    solver = Orders(2)
    channels, flat = axis(solver, 3, 2), axis(solver, 12, 2)
    solver.unify(flat, repeat(4, channels))
    assert solver.settle(flat) == Order((Run(3),), repeat=4)


def test_fused_heads_are_solved_backwards():
    solver = Orders(4)
    fused, heads = axis(solver, 3 * 2 * 5), axis(solver, 2)
    solver.unify(fused, repeat(3, scale(heads, 5)))
    assert solver.settle(fused) == Order((Run(10),), repeat=3)


def test_groups_across_a_concatenation():
    solver = Orders(4)
    concatenated = axis(solver, 4) + axis(solver, 2)
    groups = axis(solver, 3)
    solver.unify(concatenated, scale(groups, 2))
    assert solver.settle(groups) == Order((Run(2), Run(1)))


def test_different_block_sizes_meet_in_their_multiple():
    solver = Orders(4)
    fours, sixes = axis(solver, 6), axis(solver, 4)
    solver.unify(scale(fours, 4), scale(sixes, 6))
    assert solver.settle(scale(fours, 4)) == solver.settle(scale(sixes, 6))


def test_repeats_of_different_length():
    solver = Orders(2)
    a, b = axis(solver, 4, 2), axis(solver, 6, 2)
    solver.unify(repeat(3, a), repeat(2, b))
    assert solver.settle(repeat(3, a)) == solver.settle(repeat(2, b)) == Order((Run(2),), 6)


def test_orders_that_cannot_agree():
    solver = Orders(4)
    with pytest.raises(Conflict):
        solver.unify((Units(SUBNETS, 4),), repeat(2, axis(solver, 2)))
    with pytest.raises(Conflict, match="sizes"):
        solver.unify(axis(solver, 2), axis(solver, 4))
    with pytest.raises(Conflict):
        solver.unify((Fixed(2), *axis(solver, 2)), (*axis(solver, 2), Fixed(2)))
    with pytest.raises(Conflict, match="grows"):
        solver.fresh(Size(4, 11))


@given(st.integers(2, 4), runs)
def test_solved_terms_keep_their_sizes(subnets, pieces):
    solver = Orders(subnets)
    term = tuple(
        p
        for run in pieces
        for p in ((Fixed(run.units),) if run.shared else axis(solver, run.units, subnets))
    )
    whole = solver.fresh(solver.size(term))
    solver.unify(whole, term)
    order = solver.settle(whole)
    assert order == Order(tuple(pieces))
    assert Size(order.narrow, order.width(subnets)) == solver.size(term)
