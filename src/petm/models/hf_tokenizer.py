"""The tokenizer of a Hugging Face folder."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from petm._internal.files import fingerprint
from petm._internal.progress import note
from petm.data.reader import Tokenizer as Tokenizer
from petm.errors import ModelError
from petm.models.hf_folder import quiet, read_json, refuse_custom_code, transformers_reading
from petm.models.prompt import Prompt, Prompting, resolve

_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken")
_BEHIND_PADDING = frozenset(
    {"camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"}
    | {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
"""Kinds of models that count positions from the padding id on, and so take fewer tokens than they have positions."""
_SAMPLE = "A text of 4 words: 文"
"""A text of several kinds of characters."""
_NO_LIMIT = 1 << 40
"""A tokenizer without a limit has a maximum far above this number."""


def load_tokenizer(folder: Path, config: Any, *, trust_remote_code: bool, prompt: Prompt | None = None) -> Tokenizer:
    """Returns the tokenizer of a folder, for the model of ``config``; with a prompt, texts are put into it.

    Raises:
        ArgumentError: The prompt is for a chat, and the tokenizer has no template of one.
        ModelError: There is none, it cannot be read, no token can pad, or it has code of its own that is not trusted.
    """
    tokenizer = _read_tokenizer(folder, trust_remote_code=trust_remote_code)
    padding = padding_id(config, tokenizer)
    if padding is None:
        raise ModelError(
            f"model: expected a token that pads or ends a text in {folder}, got none. "
            f"Give the tokenizer a pad_token, and the config its pad_token_id."
        )
    fills = {"input_ids": padding, "token_type_ids": tokenizer.pad_token_type_id}
    backend = getattr(tokenizer, "backend_tokenizer", None)  # a tokenizer in Python has none
    rules = backend.to_str() if backend else f"{type(tokenizer).__name__} {sorted(tokenizer.get_vocab().items())}"
    longest = _longest(folder, config, tokenizer)
    empty, filled = _encode(partial(_cut, tokenizer), ("", _SAMPLE), None)["input_ids"]
    if empty == filled:
        raise ModelError(
            f"model: expected a tokenizer with tokens for {_SAMPLE!r} in {folder}, got none of a "
            f"{type(tokenizer).__name__}, as which transformers reads it. Save one of this class, as in the training."
        )
    if prompt is not None:
        asked = Prompting(tokenizer, prompt)
        encode = partial(_encode, asked.encode)
        # The answer follows the last token, which stands at one place in all prompts of a batch.
        return Tokenizer(longest, fills, True, fingerprint((rules, asked.rules)), encode, asked.example)
    encode = partial(_encode, partial(_cut, tokenizer))
    return Tokenizer(longest, fills, tokenizer.padding_side == "left", fingerprint((rules,)), encode)


def ask(
    folder: str | Path, prompt: Prompt, words: Sequence[str], *, trust_remote_code: bool = False
) -> tuple[Prompt, dict[str, int]]:
    """Returns a prompt with its end, and the first token of each label word behind it, by a folder's tokenizer.

    Words of several tokens are told.

    Raises:
        ArgumentError: As `petm.models.prompt.resolve`.
        ModelError: The folder has no tokenizer, or one that cannot be read.
    """
    tokenizer = _read_tokenizer(Path(folder), trust_remote_code=trust_remote_code)
    with quiet():
        asked, tokens = resolve(tokenizer, prompt, words)
        begins = {word: tokenizer.decode([token]).strip() for word, token in tokens.items()}
    if longer := [f"{word!r} by {begin!r}" for word, begin in begins.items() if begin != word]:
        note(f"Label words of several tokens count by the first: {', '.join(longer)}.")
    return asked, tokens


def _cut(tokenizer: Any, texts: Sequence[Any], limit: int | None) -> dict[str, list[list[int]]]:
    return dict(tokenizer(list(texts), truncation=limit is not None, max_length=limit, padding=False))


_Encode = Callable[[Sequence[Any], int | None], dict[str, list[list[int]]]]


def _encode(encode: _Encode, texts: Sequence[Any], limit: int | None) -> dict[str, list[list[int]]]:
    try:
        with quiet():
            return encode(texts, limit)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's, which is no Exception: a pattern that takes too long
            raise
        raise ModelError(
            f"model: expected a tokenizer that can take the texts, got: {error!s:.200}. Fix it."
        ) from error


def _read_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    if not has_vocabulary(folder):
        raise ModelError(f"model: expected a tokenizer in {folder}, got none. Write it with tokenizer.save_pretrained.")
    return read_tokenizer(folder, trust_remote_code=trust_remote_code)


def has_vocabulary(folder: Path) -> bool:
    """Returns whether the folder has a tokenizer; without one, transformers silently makes an empty one."""
    return any(True for pattern in _VOCABULARIES for _ in folder.glob(pattern))


def read_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    """Returns the tokenizer of a folder; raises ModelError where it cannot be read or has untrusted code."""
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        refuse_custom_code(folder, read_json(settings), trust_remote_code=trust_remote_code)
    with transformers_reading(folder) as transformers:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )


def padding_id(config: Any, tokenizer: Any | None) -> int | None:
    """Returns the id of the token that pads, or None where there is none.

    The model's id comes first: models use it to find the last token, or to count positions. Where neither the
    model nor the tokenizer has one, as with GPT-2, it is the token that ends a text.
    """
    places = (config, tokenizer, tokenizer, config)
    names = ("pad_token_id", "pad_token_id", "eos_token_id", "eos_token_id")
    known = [getattr(place, name, None) for place, name in zip(places, names, strict=True)]
    return next((number for number in known if isinstance(number, int)), None)


def _longest(folder: Path, config: Any, tokenizer: Any) -> int | None:
    """The most tokens that the tokenizer and the model's table of positions allow."""
    places = getattr(config, "max_position_embeddings", None)
    if isinstance(places, int) and config.model_type in _BEHIND_PADDING:
        places -= (getattr(config, "pad_token_id", None) or 0) + 1
    limits = [limit for limit in (places, tokenizer.model_max_length) if limit is not None]
    strange = [limit for limit in limits if not isinstance(limit, int | float) or limit != limit // 1]
    if strange:
        raise ModelError(
            f"model: expected a whole number of tokens at most in {folder}, got {strange[0]!r:.60}. Correct it."
        )
    return min((int(limit) for limit in limits if 0 < limit < _NO_LIMIT), default=None)
