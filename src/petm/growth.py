"""How a second opinion grows with the size of A: the sums of a transformer, in closed form."""

from dataclasses import dataclass

_FLOAT32 = 4


@dataclass(frozen=True)
class Transformer:
    """A transformer classifier with LoRA of one rank on all linear layers of its last blocks; formulas only.

    A block of width ``d`` has four matrices ``d * d`` (queries, keys, values, output) and two of ``d * 4 d``, with
    biases, and two normalisations: ``12 d^2 + 13 d`` parameters. Embeddings and head are named by their sizes.

    Attributes:
        width: ``d``.
        blocks: ``L``.
        tokens: ``T`` of one sample.
        classes: ``K``.
        embeddings: Parameters before the first block, and of the last normalisation.
        embedding_operations: Counted operations before the first block, for one sample: of patches, say.
        rank: ``r``.
        adapted: ``k``, how many of the last blocks have adapters.
        adapters: ``M``.
        bytes_per_parameter: Of A, as it came: 2 for bfloat16, 4 for float32.
    """

    width: int
    blocks: int
    tokens: int
    classes: int = 2
    embeddings: int = 0
    embedding_operations: int = 0
    rank: int = 8
    adapted: int = 2
    adapters: int = 1
    bytes_per_parameter: int = 2

    @property
    def parameters(self) -> int:
        """``L (12 d^2 + 13 d)``, embeddings and a head ``d K + K``."""
        return self.blocks * (12 * self.width**2 + 13 * self.width) + self.embeddings + (self.width + 1) * self.classes

    @property
    def model_bytes(self) -> int:
        """A's weights, held once."""
        return self.bytes_per_parameter * self.parameters

    @property
    def adapter_parameters(self) -> int:
        """``M k r`` times the sum of ``d_in + d_out``: ``4 * 2 d + 2 * 5 d = 18 d``."""
        return self.adapters * self.adapted * self.rank * 18 * self.width

    @property
    def training_bytes(self) -> int:
        """What the adapters hold while one learns, float32: weights and a gradient each, and two moments."""
        return _FLOAT32 * self.adapter_parameters * (2 * self.adapters + 2) // self.adapters

    @property
    def block_operations(self) -> int:
        """Of one sample in one block: ``2 T * 12 d^2`` in the matrices, ``4 T^2 d`` in the attention."""
        return 24 * self.tokens * self.width**2 + 4 * self.tokens**2 * self.width

    @property
    def operations(self) -> int:
        """Of one sample in A."""
        return self.blocks * self.block_operations + self.embedding_operations + 2 * self.width * self.classes

    @property
    def counted_ratio(self) -> float:
        """Of one pass: the last ``k`` blocks once more for each adapter, and ``2 T`` operations a parameter of these.

        Where the opinions part before block ``L - k``; a parting inside its first layer spares a little more.
        """
        again = self.adapters * (self.adapted * self.block_operations + 2 * self.width * self.classes)
        return 1 + (again + 2 * self.tokens * self.adapter_parameters) / self.operations

    @property
    def feature_bytes(self) -> int:
        """Of one sample at the parting, float32: ``T d`` numbers."""
        return _FLOAT32 * self.tokens * self.width

    def fitting_operations(self, samples: int, *, parts: int, epochs: int) -> float:
        """Returns the operations of fitting on cached features, for ``N`` samples that occur in ``P`` parts.

        ``N 2 forward for FGSM, where P > 1, + P N prefix + E M P N step``; a step is a forward and a backward through
        the last ``k`` blocks, and three times the adapter's operations.

        Args:
            samples: ``N``.
            parts: ``P``, at least 1: 2 with an FGSM example of each.
            epochs: ``E``.
        """
        behind = self.adapted * self.block_operations + 2 * self.width * self.classes
        step = 2 * behind + 3 * 2 * self.tokens * self.adapter_parameters // self.adapters
        passes = self.operations * (2 if parts > 1 else 0) + parts * (self.operations - behind)
        return samples * (passes + epochs * self.adapters * parts * step)


SIZES = {
    "86 M (ViT-base)": Transformer(768, 12, 197),
    "0.3 B (ViT-large)": Transformer(1024, 24, 197),
    "1 B": Transformer(2048, 20, 512),
    "7 B": Transformer(4096, 35, 512),
    "70 B": Transformer(8192, 87, 512),
}
"""Transformers in bfloat16 up to 70e9 parameters, of images with 197 patches or of texts with 512 tokens."""
