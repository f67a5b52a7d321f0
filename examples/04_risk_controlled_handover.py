"""Automatic decisions with a bound on their error rate; a person gets all others."""

from stand_ins import digits_model

import petm

train, calibration, test = petm.load_digits(splits=(0.3, 0.35, 0.35))
model = digits_model(train)  # your trained model; petm never changes it

# At most 5 % of the trusted are wrong, with 95 % confidence; the model must not have seen the calibration samples.
grader = petm.fit(model, train, calibration=calibration, target=petm.MaxRisk(0.05), recipe="softmax")
print(grader)

grades = grader.grade(test)
wrong = grades.labels != test.labels.numpy()
trusted = grades.trusted
print(f"Without petm: {len(grades)} decided automatically, {wrong.sum()} of these wrong ({wrong.mean():.1%}).")
print(f"With it: {trusted.sum()} decided, {(wrong & trusted).sum()} of these wrong ({wrong[trusted].mean():.1%}).")
print(f"A person gets {(~trusted).sum()}, among these {(wrong & ~trusted).sum()} errors of the model.")

# Fewer errors, more for the person: the threshold is set anew without training.
strict = petm.recalibrate(grader, calibration, target=petm.MaxRisk(0.02))
print(f"At most 2 %: {strict.grade(test).trusted.mean():.0%} decided.")
