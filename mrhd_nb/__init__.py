"Joint video moment retrieval and highlight detection; what people type is imported when it is first used (PEP 562)"
__version__ = "0.8.0"

import os as _os
from importlib import import_module as _import
from typing import TYPE_CHECKING

if TYPE_CHECKING: # for editors and type checkers
    from .core.presets import preset, run_config
    from .evaluation.metrics import evaluate
    from .inference.predictor import Predictor
    from .learning.checkpoints import load
    from .learning.training import train
    from .model.model import MomentModel

# Before torch loads: threads that wait for work sleep, unless the user says otherwise (docs/results/speed.md, Threads)
_os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_PLACES = {"preset": "core.presets", "run_config": "core.presets", "MomentModel": "model.model", "train": "learning.training",
           "evaluate": "evaluation.metrics", "load": "learning.checkpoints", "Predictor": "inference.predictor"}
__all__ = [*_PLACES]


def __getattr__(name:str):
    if name not in _PLACES: raise AttributeError(f"module 'mrhd_nb' has no attribute '{name}'")
    return getattr(_import(f"mrhd_nb.{_PLACES[name]}"), name)


def __dir__()->list[str]: return sorted([*globals(), *_PLACES])
