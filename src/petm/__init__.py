"""petm: a second opinion for every prediction of a trained PyTorch classifier.

``import petm`` is light: a name is imported from its file when it is first used.
"""

from typing import TYPE_CHECKING, Any

from petm._internal.lazy import lazy_names

if TYPE_CHECKING:
    from petm.adapter.model import AdaptedModel as AdaptedModel
    from petm.adapter.model import Member as Member
    from petm.adapter.model import attach_adapter as attach_adapter
    from petm.adapter.one_pass import DualLogits as DualLogits
    from petm.adapter.one_pass import dual_logits as dual_logits
    from petm.adapter.peft_folder import adopt_adapter as adopt_adapter
    from petm.adapter.weight_drift import weight_drift as weight_drift
    from petm.data.base import Data as Data
    from petm.data.base import TensorData as TensorData
    from petm.data.digits import load_digits as load_digits
    from petm.data.digits import load_mnist as load_mnist
    from petm.data.opening import open_data as open_data
    from petm.errors import PetmError as PetmError
    from petm.fitting import estimate as estimate
    from petm.fitting import fit as fit
    from petm.grading.grader import Grader as Grader
    from petm.grading.grader import fit_grader as fit_grader
    from petm.grading.grader import load as load
    from petm.grading.grades import Grades as Grades
    from petm.grading.hub import push_to_hub as push_to_hub
    from petm.grading.label_errors import FoundLabelErrors as FoundLabelErrors
    from petm.grading.label_errors import find_label_errors as find_label_errors
    from petm.grading.onnx_export import export_onnx as export_onnx
    from petm.grading.onnx_grader import OnnxGrader as OnnxGrader
    from petm.learning import learn as learn
    from petm.models.loading import load_model as load_model
    from petm.models.paper import PaperCNN as PaperCNN
    from petm.models.paper import paper_cnn as paper_cnn
    from petm.paper.reproduction import PROTOCOLS as PROTOCOLS
    from petm.paper.reproduction import reproduce as reproduce
    from petm.recalibration import recalibrate as recalibrate
    from petm.selective.targets import Coverage as Coverage
    from petm.selective.targets import Disagreement as Disagreement
    from petm.selective.targets import MaxRisk as MaxRisk
    from petm.selective.targets import Recall as Recall
    from petm.sklearn import GradedClassifier as GradedClassifier
    from petm.sklearn import negative_aurc as negative_aurc
    from petm.training.config import FitConfig as FitConfig
    from petm.training.distillation import distill as distill
    from petm.training.error_set import ErrorSet as ErrorSet
    from petm.training.error_set import fgsm as fgsm
    from petm.training.error_set import find_errors as find_errors
    from petm.training.recipes import RECIPES as RECIPES
    from petm.training.recipes import Recipe as Recipe
    from petm.training.recipes import adapt as adapt
    from petm.training.replacement import replace_errors as replace_errors
    from petm.training.run_folder import Storage as Storage
    from petm.training.teacher import train_teacher as train_teacher

_HOME = {
    "adapter.model": ("AdaptedModel", "Member", "attach_adapter"),
    "adapter.one_pass": ("DualLogits", "dual_logits"),
    "adapter.peft_folder": ("adopt_adapter",),
    "adapter.weight_drift": ("weight_drift",),
    "data.base": ("Data", "TensorData"),
    "data.digits": ("load_digits", "load_mnist"),
    "data.opening": ("open_data",),
    "errors": ("PetmError",),
    "fitting": ("estimate", "fit"),
    "recalibration": ("recalibrate",),
    "grading.grader": ("Grader", "fit_grader", "load"),
    "grading.grades": ("Grades",),
    "grading.hub": ("push_to_hub",),
    "grading.onnx_export": ("export_onnx",),
    "grading.onnx_grader": ("OnnxGrader",),
    "grading.label_errors": ("FoundLabelErrors", "find_label_errors"),
    "learning": ("learn",),
    "models.loading": ("load_model",),
    "models.paper": ("PaperCNN", "paper_cnn"),
    "paper.reproduction": ("PROTOCOLS", "reproduce"),
    "selective.targets": ("Coverage", "Disagreement", "MaxRisk", "Recall"),
    "sklearn": ("GradedClassifier", "negative_aurc"),
    "training.config": ("FitConfig",),
    "training.distillation": ("distill",),
    "training.error_set": ("ErrorSet", "fgsm", "find_errors"),
    "training.run_folder": ("Storage",),
    "training.recipes": ("RECIPES", "Recipe", "adapt"),
    "training.replacement": ("replace_errors",),
    "training.teacher": ("train_teacher",),
}
__all__, _find, _ = lazy_names(__name__, _HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("petm")
    return _find(name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
