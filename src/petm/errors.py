"""The exceptions that petm raises on purpose.

    PetmError                  one line for the user; the command line prints it and exits 1
    ├── ArgumentError          an argument outside its rule (also a ValueError)
    ├── DataError              data that cannot be read, or that does not suit the model
    ├── ModelError             a model or weights that cannot be loaded or used
    ├── NothingToLearnError    the base model makes no training errors, so there is no error set
    ├── TrainingError          a training that went astray: its loss is no longer finite
    ├── RunError               a run folder, a checkpoint or an output file that cannot be used
    ├── BundleError            a saved grader that is damaged, too new, or made for another model
    ├── ExportError            a grader that cannot become a graph which answers as it does
    ├── HubError               an upload that the Hugging Face Hub has not taken
    └── ExtraError             a package of an optional extra that is not installed

`PetmWarning` is for what was done, but is less than was asked for.

Messages read ``<argument>: expected <rule>, got <value or shape>. <Next step>.``
"""


class PetmError(Exception):
    """Root of every exception that petm raises on purpose."""


class ArgumentError(PetmError, ValueError):
    """An argument outside its rule."""


class DataError(PetmError):
    """Data that cannot be read, or that does not suit the model."""


class ModelError(PetmError):
    """A model or weights that cannot be loaded or used."""


class NothingToLearnError(PetmError):
    """The base model makes no errors on the data, so the method has nothing to learn from."""


class TrainingError(PetmError):
    """A training that went astray."""


class RunError(PetmError):
    """A run folder, a checkpoint or an output file that cannot be used."""


class BundleError(PetmError):
    """A saved grader that is damaged, too new, or made for another model."""


class ExportError(PetmError):
    """A grader that cannot become a graph which answers as it does."""


class HubError(PetmError):
    """An upload that the Hugging Face Hub has not taken."""


class ExtraError(PetmError):
    """A package of an optional extra that is not installed."""


class PetmWarning(UserWarning):
    """What was asked for could be done only in part."""
