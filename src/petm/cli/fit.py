"""``petm fit``: a grader for one's own model."""

import csv
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from petm._internal.texts import visible
from petm.cli import options
from petm.data.images import Resize
from petm.errors import ArgumentError
from petm.training.config import CACHE_BUDGET, EVIDENCE_NAMES, ErrorSource, FitConfig

if TYPE_CHECKING:
    from petm.grading.grader import Grader
    from petm.training.estimate import Estimate

_FORM = ("size", "channels", "resize", "mean", "std", "text_column", "label_column", "length")
_ADOPTED = ("target", "set_coverage", "calibration_from_data", "force", "device")
_TRAINING = ("calibration", "recipe", "errors", "layers", "max_extra_parameters", "max_extra_time", "dry_run")


@click.command(
    epilog="Example: petm fit --model petm.models:PaperCNN --weights runs/demo/base.safetensors "
    "--data images/ --size 28 --channels 1 -o my.petm",
    short_help="Fit a grader to a trained model.",
)
@click.option("--model", "reference", required=True, help="module:factory or file.py:factory of the model, or hf:DIR.")
@click.option("--weights", type=options.PATH, help="The model's weights: .safetensors, or a state_dict file.")
@click.option(
    "--model-arg", "arguments", type=options.Pairs(options.literal, "name=value,..."), help="Arguments of the factory."
)
@click.option(
    "--data",
    "sources",
    required=True,
    multiple=True,
    type=options.PATH,
    help="Labelled data the model was trained on; repeatable.",
)
@click.option(
    "--calibration",
    multiple=True,
    type=options.PATH,
    help="Labelled data the model has not seen; repeatable. Absent: a fifth of --data.",
)
@click.option(
    "--calibration-from-data",
    is_flag=True,
    help="The model has not seen --data: a guarantee may rest on a fifth of them, and the bundle says so.",
)
@click.option("--force", is_flag=True, help="Go on where the model's accuracy says that the labels are not its own.")
@click.option("--classes", help="Class names in the order of the model's outputs, separated by commas.")
@click.option("--size", type=options.ImageSize(), help="Height and width to which images are resized.")
@click.option("--channels", type=click.Choice(["1", "3"]), help="Read images as grey or colour.")
@click.option(
    "--resize",
    type=click.Choice(get_args(Resize)),
    help="Images of another ratio of sides are squeezed to --size, or resized and cropped. Absent: squeezed, and said.",
)
@click.option("--mean", type=options.Numbers(), help="Subtracted from pixels (0 to 1), by channel: 0.485,0.456,0.406.")
@click.option("--std", type=options.Numbers(), help="Divisor of pixels after --mean, by channel: 0.229,0.224,0.225.")
@click.option("--label-words", help="Answers of a language model, one for each class, separated by commas.")
@click.option(
    "--template",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File of the question to a language model, with {text} and other columns by name.",
)
@click.option("--chat", is_flag=True, help="Ask --template as a user of the tokenizer's chat template.")
@click.option(
    "--text-column",
    multiple=True,
    help="Column of texts; two for pairs (premise, hypothesis). [default: text]",
)
@click.option("--label-column", help="Column of the labels of texts. [default: label]")
@click.option(
    "--length",
    type=click.IntRange(1),
    help="Tokens, or samples of sounds, to which inputs are padded or cut. Absent: the longest text.",
)
@options.base
@options.processor
@options.trust_remote_code
@options.skip_bad
@click.option(
    "--recipe",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="What is compared with the softmax: auto, all that fits the budgets; names of evidence with commas between "
    f"them ({', '.join(EVIDENCE_NAMES)}); or paper, the second opinion as published.",
)
@click.option(
    "--errors",
    type=click.Choice(get_args(ErrorSource)),
    help="Source of errors for the recipe paper, if the model makes too few.",
)
@click.option(
    "--layers", type=options.Pairs(int, "layer=rank,..."), help="Layers to adapt. Absent: chosen by the recipe."
)
@click.option("--max-extra-parameters", type=float, help="Size of adapters over the model's. Absent: the recipe's.")
@click.option("--max-extra-time", type=float, help="One pass over a plain forward, less 1. Absent: 0.25.")
@click.option(
    "--adapter",
    type=options.PATH,
    help="LoRA folder trained with PEFT, as the second opinion: nothing is trained, all of --data calibrate.",
)
@options.target("  [default: 0.9]")
@click.option(
    "--set-coverage",
    type=float,
    default=FitConfig.set_coverage,
    show_default=True,
    help="Probability with which the candidates of a prediction hold its true class, in each grade.",
)
@click.option(
    "--cache-budget",
    default=CACHE_BUDGET,
    show_default="4 GiB",
    help="Bytes of memory for decoded data, adversarial examples and features; the rest is read from disk or computed "
    "again.",
)
@click.option("--include-base", is_flag=True, help="Put the model's weights into the bundle.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML page about the grader: figures with intervals, curves, the most suspect samples.",
)
@options.device_map
@click.option("--fsdp", is_flag=True, help="Shard the model's weights among the processes of torchrun.")
@click.option("--dry-run", is_flag=True, help="Print what the fit will take, and train nothing.")
@options.output(text="The bundle to write.")
@options.run
@click.pass_context
def fit(
    context: click.Context,
    /,
    reference: str,
    weights: Path | None,
    arguments: dict[str, Any] | None,
    sources: tuple[Path, ...],
    calibration: tuple[Path, ...],
    classes: str | None,
    base: Path | None,
    label_words: str | None,
    template: Path | None,
    chat: bool,
    processor: Path | None,
    trust_remote_code: bool,
    skip_bad: bool,
    adapter: Path | None,
    include_base: bool,
    device_map: str | None,
    fsdp: bool,
    report: Path | None,
    dry_run: bool,
    output: Path,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Fit a grader: train the adapters, calibrate the probability of error, set the threshold, write the bundle.

    The model is not changed. After an interrupt, --resume continues the fit; the target, --report and --include-base
    may then differ. Under torchrun, processes share the work: torchrun --nproc-per-node 2 -m petm fit ...; with --fsdp
    each holds a part of the model, and all run every sample.
    """
    from petm.grading.manifest import check_target
    from petm.models.hf_folder import folder_of
    from petm.models.prompt import Prompt, different
    from petm.models.reference import check_reference
    from petm.selective.targets import target_of

    started = time.monotonic()
    form_options = {name: settings.pop(name) for name in _FORM}
    try:
        target = target_of(**{name: settings.pop(name) for name in options.TARGET})
        config = FitConfig(target=target, **settings)
        config.check_calibration(separate=bool(calibration))
    except ArgumentError as error:
        raise click.UsageError(str(error)) from error
    if adapter is not None:
        _expect_no_training(context)
    if (label_words is None) != (template is None) or (chat and template is None):
        raise click.UsageError(
            "--label-words, --template: expected both, of a language model, or neither (nor --chat)."
        )
    if fsdp and (report or dry_run or include_base or device_map):
        raise click.UsageError("--fsdp: expected no --report, --dry-run, --include-base or --device-map beside it.")
    paths = {"data": sources, "calibration": calibration, "weights": (weights,), "adapter": (adapter,)}
    for name, each in paths.items():
        for path in each:
            options.check_readable(name, path)
    if not dry_run:
        check_target(output, overwrite=overwrite)
        options.check_writable("output", output)
        options.check_writable("report", report)
    check_reference(reference, base=base, device_map=device_map)
    folder, prompt, words = folder_of(reference), None, dict[str, int]()
    if label_words is not None and template is not None:
        if folder is None:
            raise click.UsageError(f"--label-words: expected a language model (--model hf:DIR), got {reference}.")
        prompt, asked = Prompt.read(template, chat=chat), different(next(csv.reader([label_words])))
    names = options.class_names(classes)

    from petm._internal.distributed import together
    from petm.cli.inputs import form_of, inputs_of, labelled, open_inputs, open_labelled
    from petm.cli.inspect import print_fit, print_manifest
    from petm.cli.process import import_from_here
    from petm.fitting import check_disk, estimate, fit_adopted, fitted
    from petm.grading.provenance import ModelOrigin, Origin
    from petm.models.hf_adapter import base_of, is_adapter, warn_of_another_base
    from petm.models.hf_folder import read_classifier_config
    from petm.models.hf_tokenizer import ask
    from petm.models.loading import load_model, weights_fingerprint
    from petm.models.placing import shard
    from petm.models.prediction import move
    from petm.training.recipes import DATA_SHARE
    from petm.training.run_folder import open_run

    import_from_here()
    trust: Any = {"trust_remote_code": trust_remote_code}
    if folder is not None and prompt is not None:
        read_classifier_config(folder, label_words=True, **trust)
        prompt, words = ask(processor or folder, prompt, asked, **trust)
        arguments = {**(arguments or {}), "label_words": words}
    model = load_model(reference, weights, arguments=arguments, base=base, device_map=device_map, **trust)
    if folder is not None and is_adapter(folder):
        arguments = {"base": str(base := base_of(folder, base))}
        warn_of_another_base(folder, base)
    if device_map is not None:
        arguments = {**(arguments or {}), "device_map": device_map}
    if not dry_run:
        check_disk(output, model, config, include_base=include_base)
    form_options["arrays"] = all(path.suffix.lower() == ".npz" for path in (*sources, *calibration))
    wanted, label_column = inputs_of(reference, processor=processor, base=base, prompt=prompt, **trust, **form_options)
    how: dict[str, Any] = {"label_column": label_column, "skip_bad": skip_bad, **trust}
    data = open_labelled(sources, wanted, reference, names, base=base, words=tuple(words), **how)
    form, decoded = form_of(data, wanted), config.cache_budget // DATA_SHARE
    fresh = None
    if calibration:
        fresh = labelled(open_inputs(calibration, form, classes=data.classes or None, **how), skip_bad=skip_bad)
    if dry_run:
        _print_estimate(estimate(model, data, calibration=fresh, config=config, decoded=True), as_json=as_json)
        return
    origin = Origin(ModelOrigin(reference, arguments or {}, str(weights) if weights else None, data.classes), form)
    with together(sharded=fsdp) as team:
        if fsdp:
            shard(model, move(model, config.device))

        def save(grader: "Grader") -> None:
            if team.is_main or fsdp:
                grader.save(output, include_base=include_base, overwrite=overwrite)

        if adapter is not None:
            told_by = {name: getattr(config, name) for name in _ADOPTED}
            grader, samples = fit_adopted(model, adapter, data.in_memory(decoded), origin=origin, **told_by)
            save(grader)
        else:
            told = {"model": weights_fingerprint(model), "data": data.content, **config.identity()}
            folder = output.with_name(f"{output.name}.run")
            data = data.in_memory(decoded)
            if fresh is not None:
                told["calibration"] = None  # nothing is held out of the data, so training does not depend on the share
            with open_run(folder, told, resume=resume, overwrite=overwrite) as run:
                grader, samples = fitted(model, data, calibration=fresh, config=config, origin=origin, run=run)
                save(grader)
            if team.is_main:
                shutil.rmtree(folder, ignore_errors=True)
    if not team.is_main:
        return
    if report is not None:
        from petm.report.fit_report import write_fit_report

        write_fit_report(grader, samples, report)
        click.echo(f"Report: {report}", err=True)
    if as_json:
        print_manifest(output, as_json=True)
    else:
        print_fit(output, time.monotonic() - started)


def _expect_no_training(context: click.Context) -> None:
    """Refuses options about training beside an adapter that is already trained."""
    given = [name for name in _TRAINING if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"--adapter: nothing is trained and all of --data calibrate, so leave out {names}.")


def _print_estimate(estimate: "Estimate", *, as_json: bool) -> None:
    """Prints time, memory and sizes of a fit, as lines or as JSON."""
    if as_json:
        options.print_json(asdict(estimate) | {"seconds": estimate.seconds})
        return
    layers = ", ".join(f"{layer} rank {rank}" for layer, rank in estimate.layers.items()) or "none"
    where = "on disk" if estimate.features_on_disk else "in memory"
    split = " ".join(str(estimate.split_point[part]) for part in ("kind", "module")).strip()
    rows = {
        "recipe": f"{estimate.recipe} ({estimate.branch})",
        "layers": layers,
        "adapters": f"{estimate.adapter_parameters:,} parameters, {estimate.adapter_bytes:,} bytes, "
        f"{estimate.share:.2%} of the model",
        "one pass": f"{estimate.one_pass_ratio:.2f} times the operations of the model ({estimate.operations:,.0f} a "
        f"sample), split point: {split}",
        "samples": f"{estimate.samples:,} to learn from, {estimate.calibration_samples:,} to calibrate on",
        "prefix features": f"{estimate.feature_bytes:,} bytes {where}" if estimate.feature_bytes else "none",
        **{stage.title: f"{stage.seconds:.1f} s" for stage in estimate.stages},
        "in all": f"{'at most ' if estimate.at_most else 'about '}{estimate.seconds:.0f} s",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(visible(f"{name:<{width}}  {value}"))
