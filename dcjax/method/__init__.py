"""The method stage by stage, for experiments of your own; `dcjax.transfer` runs all of it.

A `Road` holds what the stages share, and composes and evaluates. `run_stage` trains; a `Journal`
keeps the checkpoints and speaks.
"""

from dcjax.method._history import Composed as Composed
from dcjax.method._history import CurveEntry as CurveEntry
from dcjax.method._history import Divergence as Divergence
from dcjax.method._history import GlobalPhase as GlobalPhase
from dcjax.method._history import SubnetsEntry as SubnetsEntry
from dcjax.method._history import SubnetsPhase as SubnetsPhase
from dcjax.method._history import json_values as json_values
from dcjax.method._journal import Folder as Folder
from dcjax.method._journal import Journal as Journal
from dcjax.method._journal import Kept as Kept
from dcjax.method._journal import digest as digest
from dcjax.method._model import versions as versions
from dcjax.method._road import STAGES as STAGES
from dcjax.method._road import Road as Road
from dcjax.method._score import Score as Score
from dcjax.method._score import score as score
from dcjax.method._stage import Evaluate as Evaluate
from dcjax.method._stage import Plan as Plan
from dcjax.method._stage import Progress as Progress
from dcjax.method._stage import Split as Split
from dcjax.method._stage import Watch as Watch
from dcjax.method._stage import run_stage as run_stage
