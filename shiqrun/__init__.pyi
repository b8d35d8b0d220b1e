from shiqrun import losses as losses
from shiqrun import types as types
from shiqrun.api.commands import evaluate as evaluate
from shiqrun.api.commands import train as train
from shiqrun.api.run import Run as Run
from shiqrun.api.run import load as load
from shiqrun.api.scores import ScoredTrajectory as ScoredTrajectory
from shiqrun.api.scores import score_actions as score_actions
from shiqrun.errors import InputError as InputError
from shiqrun.errors import TrainingError as TrainingError

__version__: str
