"""Training: sub-networks side by side, one network data-parallel or rarely averaged; one loop.

`side_by_side`, `data_parallel` and `rarely_averaged` make a `Trainer`, a few pure functions; `fit`
and `evaluate` run each of them, in one process or in several.
"""

from dcjax.training._data import Data as Data
from dcjax.training._data_parallel import data_parallel as data_parallel
from dcjax.training._devices import Engine as Engine
from dcjax.training._devices import physical_devices as physical_devices
from dcjax.training._fit import Epoch as Epoch
from dcjax.training._fit import Fit as Fit
from dcjax.training._fit import evaluate as evaluate
from dcjax.training._fit import fit as fit
from dcjax.training._fit import predict as predict
from dcjax.training._images import crop as crop
from dcjax.training._images import crop_and_flip as crop_and_flip
from dcjax.training._images import no_augment as no_augment
from dcjax.training._images import standardise as standardise
from dcjax.training._peers import PEER_LOST as PEER_LOST
from dcjax.training._peers import ending_with_peers as ending_with_peers
from dcjax.training._peers import leave as leave
from dcjax.training._peers import post as post
from dcjax.training._peers import posted as posted
from dcjax.training._processes import from_all as from_all
from dcjax.training._processes import from_first as from_first
from dcjax.training._processes import gather_members as gather_members
from dcjax.training._processes import local_members as local_members
from dcjax.training._rarely_averaged import Outer as Outer
from dcjax.training._rarely_averaged import rarely_averaged as rarely_averaged
from dcjax.training._recipe import Recipe as Recipe
from dcjax.training._recipe import steps_per_epoch as steps_per_epoch
from dcjax.training._scale_blocks import scale_blocks as scale_blocks
from dcjax.training._sgd import sgd as sgd
from dcjax.training._side_by_side import side_by_side as side_by_side
from dcjax.training._state import TrainState as TrainState
from dcjax.training._state import steps_done as steps_done
from dcjax.training._trainer import Trainer as Trainer
from dcjax.training._trainer import compile as compile
