"""A shift after deployment: a person reviews suspects and some trusted, and the second opinion learns from them."""

import torch
from stand_ins import digits_model

import petm

train, calibration, production = petm.load_digits(splits=(0.25, 0.25, 0.5))
model = digits_model(train)  # your trained model; petm never changes it
grader = petm.fit(model, train, calibration=calibration, recipe="softmax")

# In production the camera sits a little lower: every image is shifted.
seen = production.inputs(range(len(production))).roll(2, 2)
truth = production.labels
now, later = slice(0, 600), slice(600, None)

grades = grader.grade(seen[now])
review, chance = grades.to_review(audit=0.3)  # all suspects, and three of ten of the trusted
print(f"A person labels {review.sum()} of {len(grades)}.")
reviewed = seen[now][torch.from_numpy(review)], truth[now][torch.from_numpy(review)]
better = petm.learn(grader, reviewed, chance=chance[review], drawn=True)

for name, each in (("before", grader), ("after", better)):
    grades = each.grade(seen[later])
    wrong = grades.labels != truth[later].numpy()
    print(f"{name}: {grades.trusted.sum()} trusted, {(wrong & grades.trusted).sum()} of these wrong.")
