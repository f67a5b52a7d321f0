"""petm: a second opinion for every prediction of a trained PyTorch classifier.

``import petm`` is light: a name is imported from its file when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petm.adapter import AdaptedModel as AdaptedModel
    from petm.adapter import Member as Member
    from petm.adapter import attach_adapter as attach_adapter
    from petm.adoption import adopt_adapter as adopt_adapter
    from petm.data import Data as Data
    from petm.data import TensorData as TensorData
    from petm.data import load_digits as load_digits
    from petm.data import load_mnist as load_mnist
    from petm.data import open_data as open_data
    from petm.distillation import distill as distill
    from petm.drift import weight_drift as weight_drift
    from petm.dual import DualLogits as DualLogits
    from petm.dual import dual_logits as dual_logits
    from petm.error_set import ErrorSet as ErrorSet
    from petm.error_set import fgsm as fgsm
    from petm.error_set import find_errors as find_errors
    from petm.errors import PetmError as PetmError
    from petm.estimator import GradedClassifier as GradedClassifier
    from petm.estimator import negative_aurc as negative_aurc
    from petm.export import export_onnx as export_onnx
    from petm.fitting import fit as fit
    from petm.grader import Grader as Grader
    from petm.grader import fit_grader as fit_grader
    from petm.grader import load as load
    from petm.grades import Grades as Grades
    from petm.hub import push_to_hub as push_to_hub
    from petm.models import PaperCNN as PaperCNN
    from petm.models import load_model as load_model
    from petm.models import paper_cnn as paper_cnn
    from petm.onnx_grader import OnnxGrader as OnnxGrader
    from petm.recipes import RECIPES as RECIPES
    from petm.recipes import Recipe as Recipe
    from petm.recipes import adapt as adapt
    from petm.replacement import replace_errors as replace_errors
    from petm.reproduction import PROTOCOLS as PROTOCOLS
    from petm.reproduction import reproduce as reproduce
    from petm.training import Storage as Storage
    from petm.twin import train_twin as train_twin

_HOME = {
    "adapter": ("AdaptedModel", "Member", "attach_adapter"),
    "adoption": ("adopt_adapter",),
    "data": ("Data", "TensorData", "load_digits", "load_mnist", "open_data"),
    "distillation": ("distill",),
    "drift": ("weight_drift",),
    "dual": ("DualLogits", "dual_logits"),
    "error_set": ("ErrorSet", "fgsm", "find_errors"),
    "errors": ("PetmError",),
    "estimator": ("GradedClassifier", "negative_aurc"),
    "export": ("export_onnx",),
    "fitting": ("fit",),
    "grader": ("Grader", "fit_grader", "load"),
    "grades": ("Grades",),
    "hub": ("push_to_hub",),
    "models": ("PaperCNN", "load_model", "paper_cnn"),
    "onnx_grader": ("OnnxGrader",),
    "recipes": ("RECIPES", "Recipe", "adapt"),
    "replacement": ("replace_errors",),
    "reproduction": ("PROTOCOLS", "reproduce"),
    "training": ("Storage",),
    "twin": ("train_twin",),
}
_FILE_OF = {name: file for file, names in _HOME.items() for name in names}

__all__ = sorted(_FILE_OF)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("petm")
    if name not in _FILE_OF:
        raise AttributeError(f"module 'petm' has no attribute {name!r}")
    value = getattr(import_module(f"petm.{_FILE_OF[name]}"), name)
    globals()[name] = value  # also where a file has the name of its function, as distill does
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
