"""A language model answers with label words; its answers are graded as a classifier's are."""

import torch
from stand_ins import reviews
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import petm
from petm.data.base import as_data
from petm.models.hf_processors import load_processor
from petm.models.hf_tokenizer import ask
from petm.models.prompt import Prompt

prompt = Prompt.of("Review : {text} Sentiment :")
train, fresh = reviews(0), reviews(1)

# Stands for a folder of a causal language model with its tokenizer.
words = Tokenizer(models.WordLevel(unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>"], show_progress=False)
words.train_from_iterator([*train[0], "Review Sentiment : bad good"], trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
torch.manual_seed(0)
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
for part in (LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)), tokenizer):
    part.save_pretrained("llama")

prompt, tokens = ask("llama", prompt, ["bad", "good"])  # the first token of each label word
processor = load_processor("llama", prompt=prompt)
model = petm.load_model("hf:llama", arguments={"label_words": tokens})

data = as_data(train, processor=processor)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(15):  # a random model knows nothing; yours would
    torch.nn.functional.cross_entropy(model(**data.inputs(range(400))), data.labels).backward()
    optimizer.step()
    optimizer.zero_grad()

grader = petm.fit(model, train, calibration=fresh, processor=processor, recipe="softmax")
print(grader)
texts = ["a great film with a plot", "a fine film with a plot"]
for text, grade in zip(texts, grader.grade(texts), strict=True):
    print(f"{text}: {('bad', 'good')[grade.label]}, {'trusted' if grade.trusted else 'suspect'}")
