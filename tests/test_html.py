"""Layouts, stacked variables and reports show themselves in a notebook, as sound HTML."""

import html.parser

import jax
import numpy as np
import pytest

import dcjax


class Parsed(html.parser.HTMLParser):
    """The text, the rectangles, and whether every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sound, self.words, self.rects = [], True, [], []
        self.feed(text)
        self.sound &= not self.open

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.rects.append(dict(attrs))

    def handle_endtag(self, tag):
        self.sound &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def stacked():
    network = dcjax.models.CNN(width=8, num_classes=3, stages=1, convolutions=1)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    return network, dcjax.init(network, 4, jax.random.key(0), x), x


def test_every_leaf_of_a_layout_is_shown(stacked):
    layout = stacked[1].layout
    shown = Parsed(layout._repr_html_())
    assert shown.sound
    for path, leaf in layout.leaves:
        assert "/".join(path) in shown.words
        assert str(leaf.global_shape(4)) in shown.words


def test_stacked_variables_say_how_many_they_are(stacked):
    shown = Parsed(stacked[1]._repr_html_())
    assert shown.sound
    assert "Variables of 4 sub-networks" in shown.words
    assert Parsed(stacked[1]["params"]._repr_html_()).sound


def test_the_blocks_on_the_diagonal_are_where_the_layout_has_them():
    axis = dcjax.Order((dcjax.Run(1, shared=True), dcjax.Run(3)))
    leaf = dcjax.LeafLayout((axis, dcjax.Order((dcjax.Run(2),))))
    shown = Parsed(dcjax.Layout(2, ((("w",), leaf),))._repr_html_())
    whole, *blocks = shown.rects
    side = float(whole["width"])
    places = {(float(b["x"]), float(b["y"])) for b in blocks}
    # Two shared rows' parts above, then the diagonal blocks below them.
    expected = {(0, 0), (side / 2, 0), (0, side / 7), (side / 2, 4 * side / 7)}
    assert {(round(x, 1), round(y, 1)) for x, y in expected} == places
    assert len({b["fill"] for b in blocks}) == 2


def test_a_scalar_and_a_vector_are_shown():
    layout = dcjax.Layout(
        2,
        (
            (("s",), dcjax.LeafLayout(())),
            (("v",), dcjax.LeafLayout((dcjax.Order((dcjax.Run(2),)),))),
        ),
    )
    assert Parsed(layout._repr_html_()).sound


def test_a_report_shows_every_layer_and_marks_what_is_not_exact(stacked):
    network, variables, x = stacked
    report = dcjax.verify(network, variables, x)
    shown = Parsed(report._repr_html_())
    assert shown.sound
    assert [e.layer for e in report.layers] == [
        w for w in shown.words if w in {e.layer for e in report.layers}
    ]
    assert "#d73027" not in report._repr_html_()
    bad = dcjax.Report((dcjax.LayerError("a<b", (1, 2), 1.0, np.nan),), np.nan, ("c",))
    text = bad._repr_html_()
    assert "#d73027" in text
    assert "a&lt;b" in text
    assert "within cond or while: c" in text
