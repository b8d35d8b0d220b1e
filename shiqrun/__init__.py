"""The package shiqrun runs experiments in RL fine-tuning of language models from logged data, token by token.

Its functions for Python are imported when they are first used, so that `import shiqrun` and `shiqrun --help` cost
nothing: `train`, `evaluate`, `load`, `score_actions`; `Run`, `ScoredTrajectory`; `InputError`, `TrainingError`. The
losses are in `shiqrun.losses`, the types in `shiqrun.types`.
"""

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "Run",
    "ScoredTrajectory",
    "TrainingError",
    "__version__",
    "evaluate",
    "load",
    "losses",
    "score_actions",
    "train",
    "types",
]
_HOMES = {
    "InputError": "errors",
    "Run": "api.run",
    "ScoredTrajectory": "api.scores",
    "TrainingError": "errors",
    "evaluate": "api.commands",
    "load": "api.run",
    "score_actions": "api.scores",
    "train": "api.commands",
}
_MODULES = ("losses", "types")


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
