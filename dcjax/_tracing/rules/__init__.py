"""How each primitive carries the sub-networks' places from its operands to its results."""

from dcjax._tracing.rules import axiswise as axiswise
from dcjax._tracing.rules import contractions as contractions
from dcjax._tracing.rules import elementwise as elementwise
from dcjax._tracing.rules import reshaping as reshaping
from dcjax._tracing.rules.elementwise import either as either
from dcjax._tracing.rules.registry import RULES as RULES
from dcjax._tracing.rules.registry import register_rule as register_rule
