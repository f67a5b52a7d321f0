"""What stands for your own in the examples: trained models, and data made in place."""

import random
from itertools import product

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast


def digits_model(train, epochs=8):
    """A small network, trained on a data set of digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    samples = [train[row] for row in range(len(train))]
    for _ in range(epochs):
        for images, labels in torch.utils.data.DataLoader(samples, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), torch.as_tensor(labels)).backward()
            optimizer.step()
    return model.eval()


def reviews(part):
    """400 sentences about films with their classes, other ones in each part; of a "fine" one nobody is sure."""
    things, chance = ("film", "plot", "cast", "score", "scene", "ending", "story", "title"), random.Random(0)
    every = [*product(("great", "lovely", "fine", "dull", "awful", "boring"), things, things, things)]
    chance.shuffle(every)
    chosen, good = every[400 * part : 400 * part + 400], ("great", "lovely")
    labels = [int(word in good or (word == "fine" and chance.random() < 0.7)) for word, *_ in chosen]
    return [f"a {word} {first} with a {second} and a {third}" for word, first, second, third in chosen], labels


def reviews_model(epochs=12):
    """A tiny BERT with its tokenizer, trained on reviews."""
    texts, labels = reviews(0)
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]"]
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes, **names))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    tokens = tokenizer(texts, return_tensors="pt", padding=True)
    for _ in range(epochs):
        model(**tokens, labels=torch.tensor(labels)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer
