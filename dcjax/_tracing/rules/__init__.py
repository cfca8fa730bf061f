"""A rule for each primitive: how it carries the sub-networks' places from operands to results."""

from dcjax._tracing.rules import contractions as contractions
from dcjax._tracing.rules import control_flow as control_flow
from dcjax._tracing.rules import elementwise as elementwise
from dcjax._tracing.rules import indexing as indexing
from dcjax._tracing.rules import reductions as reductions
from dcjax._tracing.rules import reshaping as reshaping
from dcjax._tracing.rules import sources as sources
from dcjax._tracing.rules.registry import RULES as RULES
from dcjax._tracing.rules.registry import register_rule as register_rule
