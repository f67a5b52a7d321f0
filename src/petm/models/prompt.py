"""The prompt in which a language model is asked about a text: its template, its tokens, and those of the answers."""

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from petm._internal.records import Record
from petm._internal.texts import is_name
from petm.data.sources import TEXT, as_content
from petm.errors import ArgumentError, BundleError, DataError

_FIELD = re.compile(r"\{([\w .-]+)\}")
_NO_SPACE_BEHIND = tuple("\n\t([{\"'“‘«：")
"""What a word follows without a space."""


@dataclass(frozen=True)
class Prompt:
    """What a language model is asked.

    Attributes:
        lines: The question's lines, with ``{text}`` and other columns of the data by name.
        chat: Whether it is what a user says in the chat template of the tokenizer.
        end: What stands between the question and the answer: a space where the answer's tokens begin behind it.

    Raises:
        ArgumentError: There is no ``{text}`` in it, or a control character.

    Example:
        >>> Prompt.of("{title}: {text} Good or bad?").columns
        ('title',)
    """

    lines: tuple[str, ...]
    chat: bool = False
    end: str = ""

    def __post_init__(self) -> None:
        """Raises ArgumentError for a template without a text, or one that no bundle holds."""
        if not isinstance(self.lines, tuple) or not all(isinstance(line, str) for line in self.lines):
            got = f"{type(self.lines).__name__} {self.lines!r:.60}"
            raise ArgumentError(f"lines: expected a tuple of lines, got {got}. Make one of a text with Prompt.of.")
        strange = next((line for line in self.lines if not is_name(line)), None)
        if strange is not None:
            raise ArgumentError(f"template: expected no control characters in it, got {strange!a:.80}. Remove them.")
        if TEXT not in _FIELD.findall(self.template):
            got = f"{self.template!r:.80}"
            raise ArgumentError(f"template: expected {{{TEXT}}} where each text is to stand, got {got}. Add it.")

    @property
    def template(self) -> str:
        """The question as one text."""
        return "\n".join(self.lines)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the other columns in the template."""
        return tuple(dict.fromkeys(name for name in _FIELD.findall(self.template) if name != TEXT))

    @classmethod
    def of(cls, template: str, *, chat: bool = False) -> "Prompt":
        """Returns the prompt of a template as one text; raises ArgumentError as above."""
        return cls(tuple(template.split("\n")), chat)

    @classmethod
    def read(cls, path: Path, *, chat: bool = False) -> "Prompt":
        """Returns the prompt of a template's file, whose last end of a line is none; raises ArgumentError as above."""
        try:
            return cls.of(path.read_text(encoding="utf-8").removesuffix("\n"), chat=chat)
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"template: expected a text in UTF-8 in {path}, got: {error}. Correct it.") from error

    @classmethod
    def from_json(cls, record: Record) -> "Prompt":
        """Returns the prompt from a manifest; raises BundleError where an entry breaks its rule."""
        try:
            return cls(record.texts("lines"), record.flag("chat"), record.text("end"))
        except ArgumentError as error:
            raise BundleError(f"{record.place}, {error}") from error


class Prompting:
    """A tokenizer that puts texts into a prompt.

    Args:
        tokenizer: Of transformers.
        prompt: The prompt.

    Raises:
        ArgumentError: The tokenizer has no chat template, or one that leaves out the question.
    """

    def __init__(self, tokenizer: Any, prompt: Prompt) -> None:
        self._tokenizer, self.prompt, self._whole = tokenizer, prompt, prompt.template
        if prompt.chat:
            if not tokenizer.chat_template:
                raise ArgumentError(
                    "chat: expected a tokenizer with a chat template, got none. Leave out chat=True (--chat)."
                )
            said = [{"role": "user", "content": prompt.template}]
            self._whole = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
            if f"{{{TEXT}}}" not in self._whole:
                raise ArgumentError("chat: expected a chat template that takes a user's question, got another.")
        special = [token for token in tokenizer.all_special_tokens if len(token) > 1]
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")

    @property
    def rules(self) -> str:
        """All that the tokens depend on besides the tokenizer's vocabulary and rules."""
        prompt = self.prompt
        return repr((prompt.template, prompt.chat, prompt.end, self._tokenizer.chat_template if prompt.chat else None))

    @property
    def example(self) -> str:
        """A short text with its columns, as data hold them."""
        return as_content(dict.fromkeys((TEXT, *self.prompt.columns), "a"))

    def encode(self, texts: Sequence[str], limit: int | None) -> dict[str, list[list[int]]]:
        """Returns ``input_ids`` of the prompts with these texts; where one is too long, its text is shortened.

        Raises:
            ArgumentError: The question alone has more tokens.
            DataError: A text lacks a column.
        """
        found = [self._fields(text) for text in texts]
        rows = zip(self._tokens([self._filled(fields) for fields in found]), found, strict=True)
        return {"input_ids": [ids if limit is None else self._within(limit, ids, fields) for ids, fields in rows]}

    def _fields(self, content: str) -> dict[str, str]:
        """The text, then the other columns. A special token in them is text, and does not end the question."""
        held: Mapping[str, object] = {TEXT: content}
        if names := self.prompt.columns:
            try:
                held = {name: json.loads(content)[name] for name in (TEXT, *names)}
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise DataError(
                    f"text: expected a JSON object of {', '.join((TEXT, *names))}, got {content!r:.60}."
                ) from error
        return {
            name: self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", str(value))
            for name, value in held.items()
        }

    def _filled(self, fields: Mapping[str, str]) -> str:
        return _FIELD.sub(lambda found: fields.get(found[1], found[0]), self._whole).rstrip(" ") + self.prompt.end

    def _tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        rows = self._tokenizer(list(prompts), add_special_tokens=not self.prompt.chat, padding=False)["input_ids"]
        return [row[:-1] if self._ends else row for row in rows]

    @cached_property
    def _ends(self) -> bool:
        """Whether the tokenizer closes a text, behind which no answer would follow."""
        tokenizer = self._tokenizer
        last = tokenizer("a")["input_ids"][-1:]
        return not self.prompt.chat and last in ([tokenizer.eos_token_id], [tokenizer.sep_token_id])

    def _within(self, limit: int, ids: list[int], fields: dict[str, str]) -> list[int]:
        """The tokens of a prompt, as many as allowed: the end of the text is left out, then those of other columns."""

        def tokens(kept: int) -> list[int]:
            return self._tokens([self._filled({**fields, name: fields[name][:kept]})])[0]

        for name in fields:
            if len(ids) <= limit:
                break
            kept = bisect_right(range(len(fields[name])), limit, key=lambda kept: len(tokens(kept)))  # characters
            fields[name] = fields[name][: max(kept - 1, 0)]
            ids = tokens(len(fields[name]))
        if len(ids) > limit:
            raise ArgumentError(
                f"template: expected fewer than {limit} tokens without the text, got {len(ids)}. "
                f"Shorten it, or allow more (--length)."
            )
        return ids

    def first_token(self, between: str, word: str) -> int | None:
        """Returns the first token of a word behind the prompt; None where it is part of the prompt's last token."""
        asked = self._filled(dict.fromkeys((TEXT, *self.prompt.columns), TEXT))
        before, after = self._tokens([asked, f"{asked}{between}{word}"])
        return after[len(before)] if after[: len(before)] == before and len(after) > len(before) else None

    def follows_space(self) -> bool:
        """Returns whether a space would stand between the prompt and its answer."""
        return not self._filled({TEXT: TEXT}).endswith(_NO_SPACE_BEHIND)


def different(words: Sequence[str]) -> list[str]:
    """Returns label words without the space around them; raises ArgumentError where they are not two and different."""
    words = [word.strip() for word in words]
    if len(words) < 2 or not all(words) or len(set(words)) < len(words):
        raise ArgumentError(
            f"label_words: expected at least two different words, got {', '.join(map(repr, words))}. "
            f"Separate them with commas."
        )
    return words


def resolve(tokenizer: Any, prompt: Prompt, words: Sequence[str]) -> tuple[Prompt, dict[str, int]]:
    """Returns a prompt with its end, and the first token of each label word behind it.

    Words follow behind a space where the prompt does not end in a line or an opening quote. Where the space is a token
    of its own, as before digits, it belongs to the prompt.

    Raises:
        ArgumentError: There are fewer than two words, one is not in the vocabulary, or two begin with one token.
    """
    words = different(words)
    spaced = Prompting(tokenizer, replace(prompt, end="")).follows_space()
    first = ""
    for end, between in (("", " "), (" ", ""), ("", ""))[0 if spaced else 2 :]:
        asked = replace(prompt, end=end)
        prompting = Prompting(tokenizer, asked)
        tokens = {word: prompting.first_token(between, word) for word in words}
        fault = next(_faults(tokenizer, tokens), "")
        if not fault:
            return asked, {word: token for word, token in tokens.items() if token is not None}
        first = first or fault
    raise ArgumentError(f"label_words: expected {first} Choose other words.")


def _faults(tokenizer: Any, tokens: Mapping[str, int | None]) -> Iterator[str]:
    seen: dict[int, str] = {}
    for word, token in tokens.items():
        if token is None or not tokenizer.decode([token]).strip():
            yield f"words that begin with a token of their own behind the prompt, got {word!r}."
        elif token == tokenizer.unk_token_id:
            yield f"words in the vocabulary, got {word!r}, which is not."
        elif token in seen:
            begin = tokenizer.convert_ids_to_tokens(token)
            yield f"words that begin with different tokens, got {seen[token]!r} and {word!r} (both {begin!a})."
        else:
            seen[token] = word
