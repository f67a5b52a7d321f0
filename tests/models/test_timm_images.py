"""The images of timm's models, beside timm's rules done by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petm.errors import ModelError
from petm.models.timm_images import timm_processor

CONFIGURATION = {"architectures": ["TimmWrapperForImageClassification"], "model_type": "timm_wrapper", "num_classes": 3}


def folder_of(root: Path, **settings: Any) -> Path:
    (root / "config.json").write_text(json.dumps(CONFIGURATION | {"pretrained_cfg": settings}))
    return root


def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path: Path) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    given = {"input_size": [3, 28, 28], "crop_pct": 0.875, "interpolation": "bilinear", "mean": mean, "std": std}
    processor = timm_processor(folder_of(tmp_path, **given))
    assert processor is not None
    assert processor.shape == (3, 28, 28)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    # 28 / 0.875 = 32 is the shorter side, so the longer one is int(32 * 70 / 50) = 44; 8 and 2 pixels go on each side.
    expected = np.asarray(image.resize((44, 32), Image.Resampling.BILINEAR).crop((8, 2, 36, 30)), np.float64) / 255
    expected = ((expected - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(processor.prepare(image), expected, atol=1e-5)
    low, high = processor.value_range
    assert low == pytest.approx(-2.5)
    assert high == pytest.approx(2.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_mode": "border"},
        {"interpolation": "hamming"},
        {"input_size": [3, 28, 32]},
        {"std": [1, 0, 1]},
        {"mean": "x"},
    ],
)
def test_what_timm_can_and_petm_cannot(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"^model: expected .*pretrained_cfg"):
        timm_processor(folder_of(tmp_path, **wrong))


def test_other_folders_have_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGURATION))
    assert timm_processor(tmp_path) is None
