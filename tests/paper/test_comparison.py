import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from petm.paper.comparison import compare_detectors


def test_methods_by_hand():
    # Four samples of class 0; the base model is wrong on the last two, and least sure of the first.
    base = torch.tensor([[0.1, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    catches_one = torch.tensor([[5.0, 0.0], [5.0, 0.0], [0.0, 5.0], [4.0, 0.0]])
    catches_both = torch.tensor([[5.0, 0.0], [0.0, 1.0], [5.0, 0.0], [5.0, 0.0]])
    labels = torch.zeros(4, dtype=torch.int64)
    found = compare_detectors(base, {"one": catches_one, "both": catches_both}, labels, lead="one")

    one, both, softmax = (found["detection"][name] for name in ("one", "both", "softmax"))
    assert (one["recall"], one["precision"], one["flagged"], one["errors"], one["caught"]) == (0.5, 1.0, 1, 2, 1)
    assert (both["recall"], both["precision"], both["flagged"]) == (1.0, 2 / 3, 3)
    assert (softmax["flagged"], softmax["caught"]) == (1, 0), (
        "as many flags as the lead, on the model's least sure sample"
    )

    wrong = [False, False, True, True]
    doubt = 1 - base.double().softmax(1).amax(1).numpy()
    assert found["ranking"]["softmax"]["auroc"] == pytest.approx(roc_auc_score(wrong, doubt))
    assert found["ranking"]["softmax"]["aupr_error"] == pytest.approx(average_precision_score(wrong, doubt))
    assert found["differences"]["both"]["recall"].value == -0.5
    assert "one" not in found["differences"]


def test_no_error_leaves_recall_undefined_and_does_not_fail():
    base = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    found = compare_detectors(base, {"lead": base}, torch.tensor([0, 1]), lead="lead")
    assert found["detection"]["lead"]["recall"] != found["detection"]["lead"]["recall"]
    assert found["detection"]["lead"]["errors"] == 0
