"""A grader from a folder with one sub-folder of images for each class; new images are graded by their paths."""

from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from stand_ins import digits_model

import petm

made = TemporaryDirectory()  # your images would lie in a folder already
folder = Path(made.name)
(digits,) = petm.load_digits(splits=(1.0,))
for row in range(1200):
    place = folder / ("fresh" if row % 2 else "train") / f"digit {int(digits.labels[row])}"
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray((digits.inputs([row])[0, 0] * 255).byte().numpy()).save(place / f"{row}.png")

train = petm.open_data(folder / "train", size=(28, 28), channels=1)
fresh = petm.open_data(folder / "fresh", size=(28, 28), channels=1)

model = digits_model(train)  # your trained model; petm never changes it

grader = petm.fit(model, train, calibration=fresh, recipe="softmax,mahalanobis")
grader.save(folder / "my.petm")  # remembers how images are read, and the names of the classes
grader = petm.load(folder / "my.petm", model)

new = sorted((folder / "fresh" / "digit 3").iterdir())
for path, grade in zip(new[:5], grader.grade(new[:5]), strict=True):
    print(f"{path.name}: {grade.name}, {'trusted' if grade.trusted else 'suspect'}")
print(grader.grade(Image.open(new[0])))
made.cleanup()
