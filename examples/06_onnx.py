"""A grader as an ONNX graph, which runs without PyTorch; `onnx_grade.py` grades by it without petm."""

import numpy as np
from stand_ins import digits_model

import petm

train, calibration, test = petm.load_digits(splits=(0.3, 0.35, 0.35))
model = digits_model(train)  # your trained model; petm never changes it
grader = petm.fit(model, train, calibration=calibration, recipe="softmax,mahalanobis")

petm.export_onnx(grader, "digits.onnx", test.inputs(range(8)))
graph = petm.OnnxGrader("digits.onnx")

x = test.inputs(range(200)).numpy()
expected, found = grader.grade(x), graph.grade(x)
print(f"{found.trusted.sum()} of {len(found)} trusted")
print(f"Suspicion differs by at most {np.abs(found.suspicion - expected.suspicion).max():.0e}.")
print(graph.grade(x[0]))
