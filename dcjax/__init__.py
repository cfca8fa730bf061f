"""Width decomposition and composition of deep networks in JAX.

A global network is decomposed along its width into K narrow sub-networks, which are trained side by
side without any communication; their weights are composed block-diagonally into the global network,
which computes exactly what they computed, and is trained a little further.

    network   = dcjax.models.ResNet(depth=32, width=64, num_classes=10)
    stacked   = dcjax.init(network, 4, key, x)         # K sub-networks' variables
    …                                                  # dcjax.training trains them
    variables = dcjax.compose(stacked)                 # network.apply(variables, x)
"""

from dcjax import method as method
from dcjax import models as models
from dcjax import native as native
from dcjax import samples as samples
from dcjax import training as training
from dcjax._bounds import Bounds as Bounds
from dcjax._bounds import BoundsSums as BoundsSums
from dcjax._bounds import bounds as bounds
from dcjax._bounds import bounds_finish as bounds_finish
from dcjax._bounds import bounds_update as bounds_update
from dcjax._compose.compose import compose as compose
from dcjax._compose.compose import extract as extract
from dcjax._compose.opt_state import compose_opt_state as compose_opt_state
from dcjax._compose.stack import stack as stack
from dcjax._compose.stack import unstack as unstack
from dcjax._compose.stacked import Stacked as Stacked
from dcjax._files.save import FileError as FileError
from dcjax._files.save import load as load
from dcjax._files.save import save as save
from dcjax._layout.layout import Layout as Layout
from dcjax._layout.layout import LeafLayout as LeafLayout
from dcjax._layout.order import Order as Order
from dcjax._layout.order import Run as Run
from dcjax._linen.decompose import decompose as decompose
from dcjax._linen.grouped import grouped as grouped
from dcjax._linen.narrowable import narrowable as narrowable
from dcjax._linen.network import apply as apply
from dcjax._linen.network import init as init
from dcjax._linen.network import layout as layout
from dcjax._linen.verify import LayerError as LayerError
from dcjax._linen.verify import Report as Report
from dcjax._linen.verify import verify as verify
from dcjax._linen.verify import verify_functions as verify_functions
from dcjax._tracing.errors import Inseparable as Inseparable
from dcjax._tracing.errors import NotSeparableError as NotSeparableError
from dcjax._tracing.errors import Violation as Violation
from dcjax._tracing.functions import layout_of_functions as layout_of_functions
from dcjax._tracing.modules import functions_of_modules as functions_of_modules
from dcjax._tracing.rules import register_rule as register_rule
from dcjax.method._load_run import load_run as load_run
from dcjax.method._model import Model as Model
from dcjax.method._transfer import Result as Result
from dcjax.method._transfer import transfer as transfer

__version__ = "0.1.0"
