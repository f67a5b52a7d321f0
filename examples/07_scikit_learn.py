"""A grader as a classifier of scikit-learn, in a pipeline and in cross-validation."""

from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from stand_ins import digits_model

import petm

train, rest = petm.load_digits(splits=(0.3, 0.7))
model = digits_model(train)  # your trained model; petm never changes it

X = rest.inputs(range(len(rest))).flatten(1).numpy()
y = rest.labels.numpy()
as_images = FunctionTransformer(lambda flat: flat.reshape(-1, 1, 28, 28))
classifier = petm.GradedClassifier(model, recipe="softmax", target=petm.Recall(0.9), calibration_from_data=True)

pipeline = make_pipeline(as_images, classifier).fit(X[:800], y[:800])
print(f"accuracy of the model: {pipeline.score(X[800:], y[800:]):.1%}")
grades = classifier.grade(X[800:].reshape(-1, 1, 28, 28))
print(f"of the trusted: {(grades.labels == y[800:])[grades.trusted].mean():.1%}, coverage {grades.trusted.mean():.1%}")

for recipe in ("softmax", "mahalanobis"):
    candidate = make_pipeline(as_images, classifier.__sklearn_clone__().set_params(recipe=recipe))
    scores = cross_val_score(candidate, X, y, scoring=petm.negative_aurc, cv=3)
    print(f"{recipe}: area under the risk-coverage curve {-scores.mean():.4f}, lower is better")
