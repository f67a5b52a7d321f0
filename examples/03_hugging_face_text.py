"""A grader for a text classifier of Hugging Face and its tokenizer, from texts and labels in Python."""

from stand_ins import reviews, reviews_model

import petm

model, tokenizer = reviews_model()  # your AutoModelForSequenceClassification and AutoTokenizer
train, fresh = reviews(0), reviews(1)  # texts and labels each

grader = petm.fit(model, train, calibration=fresh, processor=tokenizer, recipe="softmax,mahalanobis")
print(grader)

texts = ["a great film with a plot", "a fine film with a plot", "an unknown kind of words"]
grades = grader.grade(texts)  # or one text, a table (pathlib.Path), tokens, a data set
for text, grade in zip(texts, grades, strict=True):
    print(f"{text}: {grade.name}, {'trusted' if grade.trusted else 'suspect'}")

grader.save("reviews.petm")
grader = petm.load("reviews.petm", model, processor=tokenizer)
print(grader.grade("a dull story with a title"))
