"""A bundle and its figures in MLflow."""

import mlflow
from stand_ins import digits_model

import petm

train, calibration = petm.load_digits(splits=(0.4, 0.6))
model = digits_model(train)

with mlflow.start_run() as run:
    grader = petm.fit(model, train, calibration=calibration, recipe="softmax", target=petm.Recall(0.9))
    mlflow.log_params({"target": str(grader.target), "evidence": grader.score})
    for name in ("coverage", "risk", "recall", "precision"):
        mlflow.log_metric(name, grader.measured[name]["value"])
    for name in ("auroc", "aurc"):
        mlflow.log_metric(name, grader.measured[name])
    grader.save("digits.petm", overwrite=True)
    mlflow.log_artifacts("digits.petm", artifact_path="digits.petm")

logged = mlflow.get_run(run.info.run_id).data  # what `mlflow ui` shows
print(logged.params)
for name, value in sorted(logged.metrics.items()):
    print(f"{name}: {value:.3f}")
