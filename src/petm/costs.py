"""What fitting takes for any number of samples: counted operations and bytes, multiplied out. Formulas only."""

from dataclasses import dataclass

BATCH = 256
"""Samples in one pass over the data, and in one training step of a recipe."""
TRIALS, MOST_TRIED = 3, 2000
"""Passes of A over at most so many images in which `petm.augmentation` chooses its strength, if the first will do."""
CHECKED = 10_000
"""Samples at most on which A's errors are counted beforehand, where nothing is learnt from these."""
HEAP = 1.2
"""What a stage takes of the C library over what its tensors hold: blocks leave gaps between them (docs/scale.md)."""
INDEX, DRAWS = 32, 24
"""Bytes beside each sample: label, position, places in the order and among the replaced; beside each augmented copy."""


@dataclass(frozen=True)
class Line:
    """What grows linearly with the samples of a batch: ``fixed + each * n``."""

    fixed: float
    each: float

    def at(self, n: int) -> float:
        """Returns the value at ``n`` samples."""
        return self.fixed + self.each * n


@dataclass(frozen=True)
class Stage:
    """One of the computations that fitting consists of.

    Attributes:
        operations: Of one sample, in a full batch.
        held: Bytes that its tensors hold at most, for a batch; weights, inputs and cached features are not among them.
        batch: Samples in a full batch.
    """

    operations: float
    held: Line
    batch: int = BATCH


@dataclass(frozen=True)
class Rates:
    """Operations per second of a machine.

    Attributes:
        passes: In passes of A, forwards or backwards to its inputs.
        steps: In training steps of an adapter, which are smaller and wait more for memory.
    """

    passes: float
    steps: float


@dataclass(frozen=True)
class Expected:
    """What fitting takes for one number of samples.

    Attributes:
        samples: ``N``, that the adapters learn from.
        operations: Counted, in all.
        seconds: Of the fitting; the calibration afterwards takes a pass of A and one pass for each of its samples.
        cache_bytes: Of the features that are computed once.
        cache_in_memory: Whether they lie in memory, or else in a temporary file.
        memory_bytes: At most in use, A's weights included and the libraries themselves not.
    """

    samples: int
    operations: float
    seconds: float
    cache_bytes: int
    cache_in_memory: bool
    memory_bytes: float


@dataclass(frozen=True)
class FittingCost:
    """What `at` multiplies out.

    Attributes:
        epochs: ``E``, passes of each adapter over the data.
        adapters: ``M``.
        copies: Augmented copies of each sample.
        parts: ``P``, how often each sample occurs: itself, its copies, its FGSM example.
        trials: Passes of A over up to 2,000 samples in which the strength of the augmentation is chosen.
        model_bytes: Of A's parameters and buffers, in the precision they have.
        laid_out_bytes: Of A's convolution weights, which are held a second time, channels last.
        adapter_bytes: Of all adapters.
        sample_bytes: Of one input.
        example_bytes: Of one FGSM example, or of the step that is added where the input is text.
        feature_bytes: Of one sample's cached features; 0 where none are cached.
        cache_budget: Bytes of memory for all features.
        example_budget: For all FGSM examples.
        data_budget: For data that come from files, decoded.
        forward: A pass of A.
        gradient: FGSM; absent where the recipe takes no step.
        features: The frozen part of A; absent where nothing is cached.
        step: A training step of one adapter.
        rates: Operations per second.
    """

    epochs: int
    adapters: int
    copies: int
    parts: int
    trials: int
    model_bytes: int
    laid_out_bytes: int
    adapter_bytes: int
    sample_bytes: int
    example_bytes: int
    feature_bytes: int
    cache_budget: int
    example_budget: int
    data_budget: int
    forward: Stage
    gradient: Stage | None
    features: Stage | None
    step: Stage
    rates: Rates

    def at(self, samples: int) -> Expected:
        """Returns what fitting takes for ``N`` samples.

        ::

            passes     = (min(N, 10000) + trials min(N, 2000)) forward + R gradient + P N features
            steps      = E M P N step
            operations = passes + steps
            seconds    = passes / rate of passes + steps / rate of steps
            cache      = P N bytes of a sample's features
            examples   = N bytes of an FGSM example
            memory     = A + layout + data + index + examples + cache + (2 + 1 / M) adapters
                         + 1.2 max(held(forward) + held(gradient), held(features), held(step))

        ``held`` is for a full batch. ``data`` (decoded samples), ``cache`` and ``examples`` each count within their
        budgets only. Beyond these, data are read and features lie on disk, and examples are made whenever they are
        read: ``R`` is N where they are held or features are cached, else ``E M N``. Each adapter has weights and a
        gradient, the one that learns two moments besides (its gradient is in ``held``). Of the stages,
        forward and gradient are added though they follow each other: memory that was used is kept, and what one leaves
        free is cut in pieces that the other cannot use. Before and after the features it is given back
        (`petm.allocator`); without these the step is added too. Everything is linear in N but for the trials, the first
        batch, and where data, features or examples no longer lie in memory.

        Args:
            samples: ``N``, at least 1.
        """
        n, rows = samples, self.parts * samples
        passes = (min(n, CHECKED) + self.trials * min(n, MOST_TRIED)) * self.forward.operations
        examples = n * self.example_bytes
        made = n if self.features or examples <= self.example_budget else self.epochs * self.adapters * n
        passes += made * self.gradient.operations if self.gradient else 0
        passes += rows * self.features.operations if self.features else 0
        steps = self.epochs * self.adapters * rows * self.step.operations

        cache, data = rows * self.feature_bytes, n * self.sample_bytes
        lasting = self.model_bytes + self.laid_out_bytes + INDEX * rows + DRAWS * self.copies * n
        held = ((data, self.data_budget), (examples, self.example_budget), (cache, self.cache_budget))
        lasting += sum(size for size, budget in held if size <= budget)
        forward, gradient, features, step = (
            stage.held.at(min(stage.batch, n)) if stage else 0.0
            for stage in (self.forward, self.gradient, self.features, self.step)
        )
        passing = max(forward + gradient, features, step) if self.features else forward + gradient + step
        return Expected(
            samples=n,
            operations=passes + steps,
            seconds=passes / self.rates.passes + steps / self.rates.steps,
            cache_bytes=cache,
            cache_in_memory=cache <= self.cache_budget,
            memory_bytes=lasting + (2 + 1 / self.adapters) * self.adapter_bytes + HEAP * passing,
        )
