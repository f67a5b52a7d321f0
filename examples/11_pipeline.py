"""A grade beside each answer of `pipeline("text-classification")`."""

from stand_ins import reviews, reviews_model
from transformers import pipeline

import petm

model, tokenizer = reviews_model()
classify = pipeline("text-classification", model=model, tokenizer=tokenizer)  # yours

how = {"calibration": reviews(1), "processor": classify.tokenizer, "recipe": "softmax"}
grader = petm.fit(classify.model, reviews(0), **how)

texts = ["a great film with a plot", "a fine film with a plot", "a dull story with a title"]
for text, answer, grade in zip(texts, classify(texts), grader.grade(texts), strict=True):
    assert answer["label"] == grade.name
    print(f"{text}: {answer['label']} ({answer['score']:.2f}), {'trusted' if grade.trusted else 'suspect'}")
