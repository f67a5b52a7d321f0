"""A grader that is fitted when the `Trainer` of Hugging Face has finished."""

from stand_ins import reviews, reviews_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import petm


class FitGrader(TrainerCallback):
    """Fits a grader on the training set, calibrates it on fresh samples, and saves it beside the checkpoints."""

    def __init__(self, fresh, **settings):
        self.fresh, self.settings = fresh, settings

    def on_train_end(self, args, state, control, model=None, processing_class=None, train_dataloader=None, **_):
        """Fits it; `Trainer` passes what it has."""
        how = {"calibration": self.fresh, "processor": processing_class, **self.settings}
        self.grader = petm.fit(model, train_dataloader.dataset, **how)
        self.grader.save(f"{args.output_dir}/grader.petm", overwrite=True)


class Reviews(Dataset):
    """Tokens and labels by name, as `Trainer` takes them; a `datasets.Dataset` will do as well."""

    def __init__(self, tokenizer, part):
        texts, self.labels = reviews(part)
        self.tokens = [tokenizer(text) for text in texts]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {**self.tokens[row], "labels": self.labels[row]}


model, tokenizer = reviews_model(epochs=0)
callback = FitGrader(Reviews(tokenizer, part=1), recipe="softmax")
how = {"num_train_epochs": 3, "learning_rate": 1e-2, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
arguments = TrainingArguments("trained", dataloader_pin_memory=False, **how)
train = Reviews(tokenizer, part=0)
Trainer(model, arguments, train_dataset=train, processing_class=tokenizer, callbacks=[callback]).train()

print(callback.grader)
print(callback.grader.grade(["a great film with a plot", "a fine film with a plot"]))
