"""Experiment trackers get every metric of a run beside `metrics.csv`: W&B, TensorBoard, MLflow, Trackio."""

from shiqrun.tracking.dashboard import Wandb, has_key, log_samples
from shiqrun.tracking.ending import close
from shiqrun.tracking.mlflow_run import MLflow
from shiqrun.tracking.tensorboard_files import TensorBoard
from shiqrun.tracking.trackio_run import Trackio

__all__ = ["MLflow", "TensorBoard", "Trackio", "Wandb", "close", "has_key", "log_samples"]
