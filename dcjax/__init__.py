"""Width decomposition and composition of deep networks in JAX.

A global network is decomposed along its width into K narrow sub-networks, which are trained side by
side without any communication; their weights are composed block-diagonally into the global network,
which computes exactly what they computed, and is trained a little further.

    network   = dcjax.models.ResNet(depth=32, width=64, num_classes=10)
    stacked   = dcjax.init(network, 4, key, x)         # K sub-networks' variables
    …                                                  # dcjax.training trains them
    variables = dcjax.compose(stacked)                 # network.apply(variables, x)
"""

from dcjax import models as models
from dcjax import native as native
from dcjax import samples as samples
from dcjax import training as training
from dcjax._bounds import Bounds as Bounds
from dcjax._bounds import BoundsSums as BoundsSums
from dcjax._bounds import bounds as bounds
from dcjax._bounds import bounds_finish as bounds_finish
from dcjax._bounds import bounds_update as bounds_update
from dcjax._compose import compose as compose
from dcjax._compose import extract as extract
from dcjax._decompose import decompose as decompose
from dcjax._functions import layout_of_functions as layout_of_functions
from dcjax._layout import Layout as Layout
from dcjax._layout import LeafLayout as LeafLayout
from dcjax._moments import compose_opt_state as compose_opt_state
from dcjax._network import apply as apply
from dcjax._network import init as init
from dcjax._network import layout as layout
from dcjax._order import Order as Order
from dcjax._order import Run as Run
from dcjax._rules import register_rule as register_rule
from dcjax._save import FileError as FileError
from dcjax._save import load as load
from dcjax._save import save as save
from dcjax._stack import stack as stack
from dcjax._stack import unstack as unstack
from dcjax._stacked import Stacked as Stacked
from dcjax._trace import NotSeparableError as NotSeparableError
from dcjax._trace import Violation as Violation
from dcjax._verify import LayerError as LayerError
from dcjax._verify import Report as Report
from dcjax._verify import verify as verify
