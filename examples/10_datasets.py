"""Data of the package `datasets`: its class names, texts or tokens are read as they are."""

import datasets
from stand_ins import reviews, reviews_model

import petm

model, tokenizer = reviews_model()
features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
train, fresh = (  # your datasets.load_dataset(...)
    datasets.Dataset.from_dict(dict(zip(("text", "label"), reviews(part), strict=True)), features) for part in range(2)
)

grader = petm.fit(model, train, calibration=fresh, processor=tokenizer, recipe="softmax")
print(grader)

grades = grader.grade(fresh)
graded = fresh.add_column("trusted", grades.trusted.tolist())
print(graded.filter(lambda row: not row["trusted"]))

tokens = fresh.map(lambda row: tokenizer(row["text"])).with_format("torch", columns=["input_ids", "attention_mask"])
print(grader.grade(tokens).trusted.sum(), "trusted, from tokens")
