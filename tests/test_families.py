"""The table of public architectures: each row composes exactly, or is refused by name."""

from pathlib import Path

import pytest

import dcjax
from tests.exactness import relative_error
from tests.families import ROWS, K, page_table

PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
EXACT = 2e-6
EXACT_LAYERS = 1e-5  # the variances of batch norm in training lose digits

COMPOSED = {row.family: row for row in ROWS if row.network is not None}
REFUSED = {row.family: row for row in ROWS if row.refused is not None}


@pytest.mark.parametrize("family", COMPOSED)
def test_a_family_composes_exactly(family):
    row = COMPOSED[family]
    network, given = row.ready(row.network), {"calls": row.calls, **row.arguments()}
    error, stacked = relative_error(network, K, row.x, row.fields, **given)
    assert error <= EXACT
    assert dcjax.verify(network, stacked, row.x, fields=row.fields, **given).error <= EXACT_LAYERS


@pytest.mark.parametrize("family", REFUSED)
def test_what_does_not_compose_is_refused_by_name(family):
    row = REFUSED[family]
    with pytest.raises((ValueError, TypeError)) as error:
        dcjax.layout(row.ready(row.refused.network), K, row.x, fields=row.refused.fields)
    said = "\n".join([str(error.value), *getattr(error.value, "__notes__", ())])
    assert [words for words in row.refused.says if words not in said] == []


def test_the_page_has_these_rows():
    assert page_table() in PAGE.read_text()
    assert {*COMPOSED, *REFUSED} == {row.family for row in ROWS}
