"""Opening the data that a command names, and reporting what was left out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from petm.cli.graders import prepares, processor_of, reader_of
from petm.data.base import Data, Joined
from petm.data.decisions import Decided
from petm.data.images import Resize, by_channel
from petm.data.labelled_inputs import LabelledInputs, read_labelled
from petm.data.labels import UNLABELLED, enumerated, refuse_faults
from petm.data.opening import open_data
from petm.data.reader import of_pairs
from petm.data.texts import Tokenized, read_texts
from petm.errors import ArgumentError, DataError
from petm.grading.provenance import InputOrigin
from petm.models.hf_adapter import is_adapter
from petm.models.hf_classifier import read_classes
from petm.models.hf_folder import folder_of, takes_sound
from petm.models.hf_tokenizer import Tokenizer
from petm.models.prediction import check_labels
from petm.models.prompt import Prompt


def open_inputs(
    paths: Sequence[Path],
    inputs: InputOrigin,
    *,
    skip_bad: bool,
    label_column: str | None = None,
    classes: tuple[str, ...] | None = None,
    trust_remote_code: bool = False,
) -> Data:
    """Returns the joined data at one or more paths, and names inputs that are left out on standard error.

    Where ``inputs`` has no size, all images are read in the size of the first path; where there are no ``classes``, in
    the order of the model's outputs, those of the first path that has some are taken.
    """
    processor = processor_of(inputs, trust_remote_code)
    if isinstance(processor, Tokenizer):
        column = inputs.columns or "text"
        texts = read_texts(*paths, text_column=column, label_column=label_column, classes=classes, skip_bad=skip_bad)
        _report(", ".join(map(str, paths)), texts.rows.skipped, len(texts))
        return Tokenized(texts, processor, length=inputs.length)
    parts: list[Data] = []
    for path in paths:
        part = open_data(path, classes=classes, skip_bad=skip_bad, **inputs.settings(processor))
        _report(str(path), getattr(part, "skipped", {}), len(part))
        inputs, classes = form_of(part, inputs), classes or part.classes
        parts.append(part)
    return parts[0] if len(parts) == 1 else Joined(*parts)


def of_one_length(inputs: InputOrigin, trust_remote_code: bool) -> InputOrigin:
    """Returns the form in which texts of several sources have one length: that of the most tokens the model takes."""
    processor = processor_of(inputs, trust_remote_code)
    most = processor.maximum if isinstance(processor, Tokenizer) else None
    return replace(inputs, length=inputs.length or most)


def open_decided(
    decided: Decided,
    files: Sequence[Path],
    inputs: InputOrigin,
    classes: tuple[str, ...],
    *,
    skip_bad: bool = False,
    trust_remote_code: bool = False,
) -> LabelledInputs:
    """Returns the inputs that people have decided on; says what is left out, and of how many nobody can tell.

    Raises:
        DataError: As `petm.data.labelled_inputs.read_labelled`.
    """
    if untold := int((decided.labels == UNLABELLED).sum()):
        click.echo(f"labels: nobody can tell {untold:,}; a guarantee counts them as wrong.", err=True)
    reader = reader_of(inputs, trust_remote_code)
    found = read_labelled(decided, files, reader, classes, text_column=inputs.columns, skip_bad=skip_bad)
    _report("labels", found.skipped, len(found.data))
    return found


def _report(source: str, skipped: Mapping[str, str], left: int) -> None:
    """Prints on standard error what was left out and why."""
    for name, reason in skipped.items():
        click.echo(f"skipped: {name}: {reason}", err=True)
    if skipped:
        click.echo(f"{source}: {len(skipped)} left out, {left} remain.", err=True)


def open_labelled(
    paths: Sequence[Path],
    inputs: InputOrigin,
    reference: str,
    classes: tuple[str, ...] | None,
    *,
    base: Path | None = None,
    skip_bad: bool,
    trust_remote_code: bool,
    words: Sequence[str] = (),
    **how: Any,
) -> Data:
    """Returns the joined labelled data at one or more paths, with the classes of a model where these are known.

    A model ``hf:DIR`` has the number of classes and often their names, or label ``words``; ``classes`` are names in the
    order of the model's outputs, in place of those.

    Raises:
        ArgumentError: There is not one name for each output of the model.
        DataError: The data cannot be read; their classes are not those of the model; or a label is missing or outside
            0..K-1.
    """
    folder, count = folder_of(reference), 0
    if folder is not None:
        count, own = len(words), tuple(words)
        if not words:
            count, own = read_classes(folder, base=base, trust_remote_code=trust_remote_code)
        if classes and len(classes) != count:
            raise ArgumentError(f"classes: expected {count} names, one for each class of {folder}, got {len(classes)}.")
        if classes and classes != own and sorted(classes) == sorted(own):
            raise ArgumentError(
                f"classes: expected the order of {folder}, {enumerated(own)}, got {enumerated(classes)}."
            )
        classes = classes or own
    data = open_inputs(paths, inputs, skip_bad=skip_bad, classes=classes, trust_remote_code=trust_remote_code, **how)
    if folder is not None and len(data.classes) not in (0, count):
        raise DataError(
            f"{data.source}: expected the {count} classes of {folder}, got {len(data.classes)}: "
            f"{', '.join(data.classes[:12])}. Name those of the model in their order with --classes."
        )
    data = labelled(data, skip_bad=skip_bad)
    if folder is not None:
        check_labels(data.labels, count, data.source)
    return data


def labelled(data: Data, *, skip_bad: bool) -> Data:
    """Returns the samples that have a label; data without any label are returned whole.

    Raises:
        DataError: Some samples have no label, and ``skip_bad`` is False.
    """
    bare = (data.labels == UNLABELLED).nonzero().flatten().tolist()
    if not bare or len(bare) == len(data):
        return data
    found = {data.name(row): "expected a label, got none" for row in bare}
    if not skip_bad:
        refuse_faults(found, "Label it, or leave out such samples with --skip-bad.")
    _report(data.source, found, len(data) - len(bare))
    return data.subset(data.labels != UNLABELLED)


def form_of(data: Data, inputs: InputOrigin) -> InputOrigin:
    """Returns the form in which grading has to read inputs, as the data were read in the form ``inputs``."""
    if inputs.processor:
        return inputs
    found = InputOrigin.of(data.inputs([0]).shape)
    mean, std = by_channel(inputs.mean or None, inputs.std or None, found.channels or 1)
    return replace(inputs, size=found.size, channels=found.channels, mean=mean, std=std)


def inputs_of(
    reference: str,
    *,
    processor: Path | None = None,
    base: Path | None = None,
    trust_remote_code: bool = False,
    size: tuple[int, int] | None = None,
    channels: str | None = None,
    resize: Resize | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    text_column: tuple[str, ...] | None = None,
    label_column: str | None = None,
    length: int | None = None,
    prompt: Prompt | None = None,
    arrays: bool = False,
) -> tuple[InputOrigin, str | None]:
    """Returns the form of a model's inputs, and the column of labels if they are texts.

    Inputs are prepared by the tokenizer or image processor of the folder ``processor``, or of the model's own folder;
    texts are put into a ``prompt``, if there is one. Sounds may also come as ``arrays`` that are prepared already.

    Raises:
        ArgumentError: The prompt asks with the answer, in the column of labels.
        UsageError: An option is for images and the model takes texts, or the other way round.
    """
    folder = processor or folder_of(reference)
    sound = False
    if folder and not is_adapter(folder) and (processor is None or (folder / "config.json").is_file()):
        sound = takes_sound(folder, trust_remote_code=trust_remote_code)
    if processor is None and sound and arrays:
        folder = None
    how: Any = {"base": base and str(base), "trust_remote_code": trust_remote_code, "prompt": prompt}
    how |= {"length": length} if sound else {}
    reader = prepares(str(folder), **how) if folder else None
    text_column = text_column or None
    reads_texts = isinstance(reader, Tokenizer)
    for_images = {"--size": size, "--channels": channels, "--resize": resize, "--mean": mean, "--std": std}
    for_texts: dict[str, Any] = {"--text-column": text_column, "--label-column": label_column}
    for_texts["--length"] = None if sound and reader else length
    for option, value in {**(for_images if reader else {}), **({} if reads_texts else for_texts)}.items():
        if value is not None:
            beside = f"--processor {processor}" if processor else reference
            none = "none without a tokenizer (--model hf:DIR, or --processor DIR)"
            raise click.UsageError(f"{option}: expected {f'none beside {beside}' if reader else none}, got {value}.")
    if reader is None:
        read = InputOrigin(size, int(channels) if channels else None, resize=resize, mean=mean or (), std=std or ())
        return read, None
    read = InputOrigin(
        processor=str(folder),
        base=str(base) if base else None,
        fingerprint=reader.fingerprint,
        prompt=prompt,
        length=length,
    )
    if isinstance(reader, Tokenizer):
        first, *second = text_column or ("text",)
        if len(second) > (prompt is None):
            most = "one or two columns" if prompt is None else "one column, as --template names the others"
            raise click.UsageError(f"--text-column: expected {most}, got {enumerated(text_column or ())}.")
        label_column = label_column or "label"
        if prompt is not None and label_column in prompt.columns:
            raise ArgumentError(
                f"template: expected columns that are known before the answer, got '{label_column}', the labels. "
                f"Leave it out, or name the column of labels (--label-column)."
            )
        read = replace(read, text_column=first, length=length)
        if second:
            read = replace(read, pair_column=second[0], fingerprint=of_pairs(reader, second[0]).fingerprint)
        return read, label_column
    return read, None
