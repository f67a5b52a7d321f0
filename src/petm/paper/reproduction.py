"""The paper's experiment, from data to tables, figures and a saved grader, with its controls."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from petm._internal.files import plain, write_json
from petm.adapter.model import AdaptedModel, attach_adapter
from petm.adapter.split_point import split_point_of
from petm.adapter.weight_drift import weight_drift
from petm.data.base import Data
from petm.data.fields import one_tensor
from petm.grading.grader import Grader
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin, describe_data, library_versions
from petm.models.loading import count_parameters, load_weights, save_weights, weights_fingerprint
from petm.models.paper import paper_cnn
from petm.models.prediction import Precision, choose_device, move, predict_logits
from petm.models.scores import maximum_softmax, opposition
from petm.paper.analysis import feature_tsne, filter_pca, paper_figure
from petm.paper.comparison import compare_detectors
from petm.report.figures import alpha_figure, drift_figure, reliability_figure, risk_coverage_figure, save_figure
from petm.report.gallery import Suspect, gather_suspects
from petm.selective.curves import Judgement, judge, risk_coverage
from petm.selective.metrics import fidelity
from petm.selective.thresholds import DISAGREEMENT
from petm.training.distillation import distill
from petm.training.error_set import ErrorSet, find_errors
from petm.training.loop import CROSS_ENTROPY, History, Settings, train
from petm.training.replacement import replace_errors
from petm.training.run_folder import RunFolder, open_run
from petm.training.teacher import require_errors, train_teacher

PAPER_RANKS = {"conv1": 4, "fc1": 64, "fc2": 5}
"""The paper's layers and its rank 64 on fc1; the others, which the paper does not state, are half the full rank."""

SMALL_RANKS = {"conv1": 4, "fc1": 2, "fc2": 5}
"""The same layers at 1.6 % of the teacher instead of 50 %."""

ALPHAS = tuple(step / 8 for step in range(13))
"""The sweep: 0 is the base model, 1 imitates the teacher."""

PAPER_VALUES: dict[str, Any] = {
    "source": "LoRA-PETM: A Memory-Efficient Architecture for Prediction Error Tracking (ACK 2025)",
    "fidelity": {"base_at_alpha_0": 1.0, "teacher_at_alpha_1": 0.96},
    "detection": {
        "petm": {"recall": 0.8750, "precision": 0.5904},
        "lora_petm": {"recall": 0.8842, "precision": 0.5348},
    },
    "cost": {"adapter_over_teacher": 0.5, "system_over_petm": 0.75},
}

MAP_IMAGES, SWEEP_IMAGES = 300, 2000


@dataclass(frozen=True)
class Protocol:
    """The hyperparameters of the paper's experiment; `PROTOCOLS` sets those that the paper leaves open.

    Attributes:
        base_epochs: Epochs of the base model, unless weights are loaded.
        teacher_epochs: Epochs of the teacher.
        epochs: Most epochs of the distillation.
        patience: Epochs without a better held-out loss before the distillation stops; ``None`` runs all.
        batch_size: Samples in one step.
        epsilon: FGSM step, in a range of 1.
        start: The teacher's first weights: the base model's, or fresh ones.
        samples: The teacher's training data: the whole replaced data set, or the replaced errors alone.
        temperature: Temperature of the distillation.
        seed: Seed of all random numbers.
        precision: Precision of the matrix products in training.
    """

    base_epochs: int
    teacher_epochs: int
    epochs: int
    patience: int | None
    batch_size: int
    epsilon: float = 0.1
    start: Literal["base", "scratch"] = "base"
    samples: Literal["replaced", "errors"] = "replaced"
    temperature: float = 1.0
    seed: int = 0
    precision: Precision = "float32"


PROTOCOLS = {
    # The base model is stopped early, to leave errors; smaller data take more and smaller steps.
    "digits": Protocol(base_epochs=4, teacher_epochs=6, epochs=60, patience=5, batch_size=32),
    "mnist": Protocol(base_epochs=3, teacher_epochs=2, epochs=5, patience=2, batch_size=128),
}


@dataclass(frozen=True, eq=False)
class Reproduction:
    """The results of the paper's experiment.

    Attributes:
        result: The content of ``result.json``; see docs/reference/result.md.
        suspects: The most suspect test samples, most suspect first.
        grader: Grader with the paper's ranks and the paper's flag.
        folder: The output folder.
    """

    result: dict[str, Any]
    suspects: tuple[Suspect, ...]
    grader: Grader
    folder: Path


def reproduce(
    train_data: Data,
    test_data: Data,
    folder: str | Path,
    *,
    protocol: Protocol,
    base_weights: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
) -> Reproduction:
    """Runs the paper's experiment and writes its tables, figures and the fitted grader.

    The base model is trained or loaded. The teacher is trained on data whose errors are replaced by FGSM examples. An
    adapter is distilled from the teacher at the paper's ranks, and one at small ranks. The control takes the same steps
    on unchanged data. All are evaluated on the test data.

    Args:
        train_data: Images ``(1, 28, 28)`` with labels.
        test_data: Images of the same form, never trained on.
        folder: Output folder.
        protocol: The hyperparameters.
        base_weights: File with weights of the paper's network; absent trains the base model.
        device: ``auto``, ``cpu``, ``cuda``, ...
        resume: Whether to continue the interrupted run in ``folder``.
        overwrite: Whether to replace the run in ``folder``.

    Raises:
        NothingToLearnError: The base model makes no training error.
        RunError: The folder cannot be used.
        ModelError: ``base_weights`` do not fit the paper's network.
        DataError: The data do not suit the network.

    Reference:
        LoRA-PETM (ACK 2025), sections 2 to 4.
    """
    classes = max(len(train_data.classes), int(train_data.labels.max()) + 1)
    base: nn.Module = paper_cnn(classes, seed=protocol.seed)
    if base_weights is not None:
        load_weights(base, base_weights)
    told = {"protocol": protocol, "base": weights_fingerprint(base)}
    told |= {"train": train_data.content, "test": test_data.content}
    with open_run(folder, told, resume=resume, overwrite=overwrite) as run:
        steps = _Steps(protocol, run, device)
        base = steps.base(base, train_data, trained=base_weights is not None)
        with run.timed("errors"):
            errors = find_errors(base, train_data)
            require_errors(errors)
            replaced = replace_errors(base, train_data, errors, epsilon=protocol.epsilon)
        teacher = steps.teacher("teacher", base, train_data, errors, protocol.epsilon)
        teacher_control = steps.teacher("teacher_control", base, train_data, errors, 0.0)
        adapted = steps.adapter("lora_petm", base, PAPER_RANKS, teacher, replaced)
        small = steps.adapter("lora_petm_small", base, SMALL_RANKS, teacher, replaced)
        control = steps.adapter("control", base, PAPER_RANKS, teacher_control, train_data)
        with run.timed("judge"):
            models: dict[str, nn.Module] = {"petm": teacher, "lora_petm": adapted, "lora_petm_small": small}
            models |= {"petm_control": teacher_control, "control": control}
            base_logits = predict_logits(base, test_data)
            seconds = {name: predict_logits(model, test_data) for name, model in models.items()}
            compared = compare_detectors(base_logits, seconds, test_data.labels, lead="lora_petm")
            agreement = _fidelity(base, teacher, adapted, small, test_data, train_data.subset(errors.indices))
        with run.timed("analysis"):
            analysis = _analyse(base, teacher, adapted, test_data, run.path / "figures")
            judgement = _judge(base_logits, seconds["lora_petm"], test_data.labels, run.path / "figures")
        wrong = int((base_logits.argmax(1) != test_data.labels).sum())
        result = {
            "protocol": asdict(protocol) | {"base_weights": base_weights},
            "data": {"train": describe_data(train_data), "test": describe_data(test_data)},
            "base": {
                "parameters": count_parameters(base),
                "test_accuracy": 1 - wrong / len(test_data),
                "train_errors": len(errors),
                "test_errors": wrong,
            },
            "fidelity": agreement,
            **compared,
            "judgement": judgement,
            "cost": _cost(base, adapted, small),
            **analysis,
            "training": steps.figures,
            "seconds": run.seconds,
            "seed": protocol.seed,
            "versions": library_versions(),
            "paper": PAPER_VALUES,
        }
        result = plain(result)
        save_weights(base, run.path / "base.safetensors")
        save_weights(teacher, run.path / "teacher.safetensors")
        split_point_of(adapted, test_data.inputs([0]).to(choose_device(device)))
        found = result["detection"]["lora_petm"]
        grader = Grader(adapted, DISAGREEMENT, origin=_origin(protocol, train_data), measured=found)
        grader.save(run.path / "grader.petm", include_base=True, overwrite=True)
        write_json(run.path / "result.json", result)
    second = seconds["lora_petm"]
    suspects = gather_suspects(base_logits, second, opposition(base_logits, second), test_data)
    return Reproduction(result, suspects, grader, Path(folder))


class _Steps:
    """The trainings of one reproduction, each with its checkpoint and its time."""

    def __init__(self, protocol: Protocol, run: RunFolder, device: str) -> None:
        self.protocol, self.run, self.device = protocol, run, device
        self.figures: dict[str, Any] = {}
        self.how: Any = {"batch_size": protocol.batch_size, "seed": protocol.seed, "precision": protocol.precision}

    def base(self, model: nn.Module, data: Data, *, trained: bool) -> nn.Module:
        """Returns the base model, trained unless it is already."""
        move(model, self.device)
        if not trained:
            settings = Settings(self.protocol.base_epochs, 1e-3, **self.how)
            where: Any = {"storage": self.run.storage("base"), "device": self.device}
            self._note("base", train(model, data, CROSS_ENTROPY, settings, **where, title="the model"))
        return model.eval()

    def teacher(self, name: str, base: nn.Module, data: Data, errors: ErrorSet, epsilon: float) -> nn.Module:
        """Returns the teacher, or the control where ``epsilon`` is 0."""
        protocol = self.protocol
        with self.run.timed(name):
            return train_teacher(
                base,
                data,
                errors,
                epsilon=epsilon,
                start=protocol.start,
                samples=protocol.samples,
                epochs=protocol.teacher_epochs,
                storage=self.run.storage(name),
                device=self.device,
                title="the teacher" if epsilon else "the teacher, control",
                **self.how,
            )

    def adapter(
        self, name: str, base: nn.Module, ranks: Mapping[str, int], teacher: nn.Module, data: Data
    ) -> AdaptedModel:
        """Returns the base model with an adapter distilled from ``teacher``."""
        protocol = self.protocol
        adapted = attach_adapter(base, ranks, seed=protocol.seed)
        history = distill(
            adapted,
            teacher=teacher,
            data=data,
            temperature=protocol.temperature,
            epochs=protocol.epochs,
            patience=protocol.patience,
            storage=self.run.storage(name),
            device=self.device,
            title=f"distill {name}",
            **self.how,
        )
        self._note(name, history)
        return adapted

    def _note(self, name: str, history: History) -> None:
        self.run.seconds[name] = history.seconds
        best = history.epochs[history.best_epoch - 1]
        self.figures[name] = {"epochs": len(history.epochs), "best_epoch": history.best_epoch, **best}


def _fidelity(
    base: nn.Module, teacher: nn.Module, adapted: AdaptedModel, small: AdaptedModel, test: Data, error_set: Data
) -> dict[str, Any]:
    """Table 1: fidelity to the base model at alpha 0 and to the teacher at alpha 1, on test data and error set."""
    found: dict[str, Any] = {}
    for place, data in (("test", test), ("error_set", error_set)):
        of_base, of_teacher = (predict_logits(model, data).argmax(1) for model in (base, teacher))
        at_0, at_1 = (predict_logits(adapted, data, alpha=alpha).argmax(1) for alpha in (0.0, 1.0))
        found[place] = {
            "base_at_alpha_0": fidelity(at_0, of_base),
            "teacher_at_alpha_1": fidelity(at_1, of_teacher),
            "small_teacher_at_alpha_1": fidelity(predict_logits(small, data).argmax(1), of_teacher),
        }
    return {**found["test"], "error_set": found["error_set"]}


_DRIFT = ("layer", "relative_norm", "rank_90", "full_rank")


def _analyse(base: nn.Module, teacher: nn.Module, adapted: AdaptedModel, test: Data, folder: Path) -> dict[str, Any]:
    """The paper's Figure 1, the weight drift and the alpha sweep, as numbers and as figures."""
    conv1, conv2 = (
        filter_pca(base.get_parameter(f"{layer}.weight"), teacher.get_parameter(f"{layer}.weight"))
        for layer in ("conv1", "conv2")
    )
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    features = feature_tsne(base, teacher, "conv1", one_tensor(test.inputs(chosen[:MAP_IMAGES]), "to map"))
    seen = test.subset(chosen[:SWEEP_IMAGES])
    of_base, of_teacher = (predict_logits(model, seen).argmax(1) for model in (base, teacher))
    turned = [predict_logits(adapted, seen, alpha=alpha, title="sweep").argmax(1) for alpha in ALPHAS]
    sweep = {
        "alpha": ALPHAS,
        "fidelity_to_base": [fidelity(answer, of_base) for answer in turned],
        "fidelity_to_teacher": [fidelity(answer, of_teacher) for answer in turned],
    }
    drift = weight_drift(base, teacher)
    save_figure(paper_figure(conv1, conv2, features), folder, "figure1")
    save_figure(drift_figure(drift), folder, "drift")
    save_figure(alpha_figure(*sweep.values()), folder, "alpha")
    return {
        "drift": [{name: getattr(entry, name) for name in _DRIFT} for entry in drift],
        "sweep": sweep,
        "figure_1": {
            "conv1_explained": {"base": conv1.base_explained.tolist(), "teacher": conv1.teacher_explained.tolist()},
            "conv2_explained": {"base": conv2.base_explained.tolist(), "teacher": conv2.teacher_explained.tolist()},
            "silhouette_features": features.silhouette_features,
            "silhouette_map": features.silhouette_map,
            "probe_accuracy": features.probe_accuracy,
            "images": min(MAP_IMAGES, len(test)),
        },
    }


def _judge(base: Tensor, second: Tensor, labels: Tensor, folder: Path) -> Judgement:
    """The probability of error and the ranking by suspicion on the test data, as numbers and as figures."""
    wrong, suspicion, softmax = (base.argmax(1) != labels).numpy(), opposition(base, second), maximum_softmax(base)
    found = judge(suspicion, softmax, wrong, DISAGREEMENT.trusts(suspicion))
    lines = {"LoRA-PETM": risk_coverage(suspicion, wrong), "the model's softmax": risk_coverage(softmax, wrong)}
    save_figure(risk_coverage_figure(lines, found, "the paper's flag"), folder, "risk_coverage")
    if found.bins:
        save_figure(reliability_figure(found.bins), folder, "reliability")
    return found


def _cost(base: nn.Module, adapted: AdaptedModel, small: AdaptedModel) -> dict[str, Any]:
    """Parameters and float32 bytes: PETM holds the model and the teacher, LoRA-PETM the model and an adapter."""
    whole = count_parameters(base)
    sizes = {"base": whole, "teacher": whole}
    sizes |= {"adapter": adapted.adapter_parameters(), "small": small.adapter_parameters()}
    return {
        **{f"{name}_parameters": size for name, size in sizes.items()},
        **{f"{name}_bytes": 4 * size for name, size in sizes.items()},
        "adapter_over_teacher": sizes["adapter"] / whole,
        "small_over_teacher": sizes["small"] / whole,
        "system_over_petm": (whole + sizes["adapter"]) / (2 * whole),
        "small_system_over_petm": (whole + sizes["small"]) / (2 * whole),
    }


def _origin(protocol: Protocol, data: Data) -> Origin:
    classes = max(len(data.classes), int(data.labels.max()) + 1)
    return Origin(
        ModelOrigin("petm.models:PaperCNN", {"classes": classes}, None, data.classes),
        InputOrigin((28, 28), 1),
        {"train": describe_data(data)},
        asdict(protocol),
    )
