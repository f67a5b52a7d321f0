"""A graph of a model whose opinions separate around blocks answers as the model does."""

from pathlib import Path
from typing import Any

import pytest
import torch

import hf_folders
import petm
from networks import randomise
from petm.adapter import split_point
from petm.adapter.split_point import AROUND, SplitPoint
from petm.data.base import as_data
from petm.selective.targets import Recall
from petm.training.recipes import Recipe

pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore")
def test_a_vision_transformer_is_exported_around_its_blocks(tmp_path: Path) -> None:
    model = hf_folders.vit()
    x = torch.rand(48, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(48) % 3
    recipe = Recipe("a layer", epsilon=0.1, max_ratio=1.9, epochs=1, max_extra_parameters=0.5)
    told: dict[str, Any] = {"recipe": recipe, "target": Recall(0.8), "device": "cpu", "force": True}
    grader = petm.fit(model, as_data((x[:32], labels[:32])), calibration=as_data((x[32:], labels[32:])), **told)
    adapted = randomise(grader.adapted, scale=0.3)
    blocks = [name for name, module in model.named_modules() if type(module).__name__ == "ViTLayer"]
    around = SplitPoint(AROUND, blocks[1], (blocks[0],))
    with torch.no_grad(), adapted.hooks.asking(split_point._modules(adapted)) as asked:
        proven = split_point._prove(adapted, around, x[:4], asked)
    assert proven is not None
    adapted.take_split_point(proven)
    expected = grader.grade(x)
    petm.export_onnx(grader, tmp_path / "g.onnx", x[:8])
    for n in (1, 3, 48):
        graph = petm.OnnxGrader(tmp_path / "g.onnx").grade(x[:n].numpy())
        assert (graph.labels == expected.labels[:n]).all()
        assert abs(graph.suspicion - expected.suspicion[:n]).max() < 1e-5
        assert (graph.trusted == expected.trusted[:n]).all()
