"""Some of the kinds of `experiments.breadth`, each from fit to the grades of a loaded bundle; and what is refused."""

from pathlib import Path

import pytest

from experiments.breadth import check, forms
from petm.errors import ModelError

FORMS = forms()
TAKEN = (
    "own dense", "own dense with BatchNorm", "own dense, bfloat16", "own signals", "own volumes",
    "own grouped convolutions", "own pooled and flattened", "own mixer", "own LSTM", "own GRU",
    "own TransformerEncoder", "own TransformerEncoder, one layer", "own image and facts", "own text and facts",
    "own twins", "own graph", "own a tuple", "own a mapping", "own probabilities", "own one logit",
    "sequence bert", "sequence funnel", "sequence gpt_neo", "sequence longformer", "sequence mpt",
    "sequence reformer", "sequence xlnet", "image convnext", "audio wav2vec2", "audio audio-spectrogram-transformer",
)  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.filterwarnings("ignore")
def test_a_kind_of_model_is_fitted_saved_and_loaded(name: str, tmp_path: Path) -> None:
    check(FORMS[name], tmp_path, export=False)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("own sigmoids", r"model: expected logits, .* as of 3 sigmoids"),
        ("own a loss alone", r"model: expected logits of shape"),
        ("own compiled", r"model: expected a module that is not compiled"),
        ("own linear", r"model: expected linear or convolution layers as modules"),
    ],
)
def test_what_is_refused_is_refused_by_its_cause(name: str, cause: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=cause):
        check(FORMS[name], tmp_path)


def test_the_list_has_at_least_120_kinds() -> None:
    assert len(FORMS) >= 120
