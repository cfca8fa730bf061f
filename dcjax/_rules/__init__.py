"""How each primitive carries the sub-networks' places from its operands to its results."""

from dcjax._rules import along as along
from dcjax._rules import elementwise as elementwise
from dcjax._rules import moving as moving
from dcjax._rules import products as products
from dcjax._rules.elementwise import either as either
from dcjax._rules.registry import RULES as RULES
from dcjax._rules.registry import register_rule as register_rule
