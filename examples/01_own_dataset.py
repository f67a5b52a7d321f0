"""A grader for your own model on your own data set: any `torch.utils.data.Dataset` with its transforms."""

import torch
from stand_ins import digits_model
from torch.utils.data import Dataset, Subset

import petm


class Digits(Dataset):
    """Stands for yours: decodes a sample and prepares it when it is asked for."""

    def __init__(self):
        (self.data,) = petm.load_digits(splits=(1.0,))

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image, label = self.data[index]
        return (image - 0.3) / 0.32, int(label)


digits = Digits()
train, fresh, test = (Subset(digits, range(start, 1797, 3)) for start in range(3))

model = digits_model(train)  # your trained model; petm never changes it

grader = petm.fit(model, train, calibration=fresh, target=petm.Recall(0.9))
print(grader)

grades = grader.grade(test)  # or a DataLoader, a batch, one sample
print(grades)
truth = torch.tensor([label for _, label in test]).numpy()
wrong = grades.labels != truth
print(f"Of {wrong.sum()} errors {(wrong & ~grades.trusted).sum()} are suspect, with {(~grades.trusted).sum()} in all.")
