"""Grammars for the text of answers: a list of answers, a JSON schema with pictures in it, a regular expression, Lark.

llguidance does the matching. A picture's place in a grammar is the rule `image`, a boi and an eoi: what lies between
the two is the modality machine's business (generation/grammar.py), and the grammar waits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import llguidance
import llguidance.numpy
import torch
from PIL import Image
from torch import Tensor

from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import SPECIAL_STRINGS, TokenSpace
from unimodal.generation.prompts import Part

HIDDEN = {name: f"<unimodal-{name.strip('<>')}-token>" for name in SPECIAL_STRINGS}
"""What special tokens are called here: the text `<boi>` in a grammar is text, as everywhere else."""
IMAGE_RULE = f"image: {HIDDEN['<boi>']} {HIDDEN['<eoi>']}"
MAX_IN_A_LIST = 4
"""Pictures at most in an array whose schema sets no maxItems."""


@dataclass(frozen=True)
class Choices:
    """One of these answers, word for word."""

    answers: tuple[str, ...]

    def __init__(self, answers: Sequence[str]) -> None:
        if isinstance(answers, str) or not answers or not all(isinstance(one, str) and one for one in answers):
            raise ValueError(f"choices are a list of answers that are not empty, got {answers!r}")
        object.__setattr__(self, "answers", tuple(answers))

    def lark(self) -> str:
        """The grammar in Lark."""
        return "start: " + " | ".join(json.dumps(answer, ensure_ascii=False) for answer in dict.fromkeys(self.answers))


@dataclass(frozen=True)
class Regex:
    """Text that the whole regular expression matches (Rust's syntax, without look-around)."""

    pattern: str

    def lark(self) -> str:
        """The grammar in Lark. Raises ValueError for what is no pattern."""
        if not isinstance(self.pattern, str) or not self.pattern:
            raise ValueError(f"a regular expression is a string that is not empty, got {self.pattern!r:.60}")
        escaped = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", self.pattern, flags=re.DOTALL)
        return f"start: TEXT\nTEXT: /{escaped}/"


@dataclass(frozen=True)
class JSONSchema:
    """A JSON document under a schema. `{"type": "image"}` is a place for a picture.

    An object or array around a picture is written out in the order of its properties, all of which are then required.
    """

    schema: Mapping[str, Any]

    def lark(self) -> str:
        """The grammar in Lark. Raises ValueError for a picture where none can be."""
        names = ("$defs", "definitions")
        return f"start: {_rule(self.schema, {name: self.schema[name] for name in names if name in self.schema})}"


@dataclass(frozen=True)
class Lark:
    """A grammar in llguidance's dialect of Lark; the rule `image` stands for a picture."""

    text: str

    def lark(self) -> str:
        """The grammar in Lark."""
        return self.text


Grammar = Choices | Regex | JSONSchema | Lark
AnyGrammar = Grammar | Mapping[str, Any] | Sequence[str]
"""A grammar, or what stands for one: a schema as it is, a list of choices, Lark as a string."""


def as_grammar(given: AnyGrammar) -> Grammar:
    """The grammar that a user meant."""
    if isinstance(given, Mapping):
        return JSONSchema(given)
    if isinstance(given, str):
        return Lark(given)
    if isinstance(given, list | tuple):
        return Choices(given)
    if not isinstance(given, Choices | Regex | JSONSchema | Lark):
        raise ValueError(f"a grammar is a schema, a list of answers, Lark or a class of grammars.py, got {given!r:.60}")
    return given


class GrammarCompiler:
    """Turns grammars into matchers for one text tokenizer."""

    def __init__(self, text: TextTokenizer, space: TokenSpace) -> None:
        self.size = space.text_size
        self.tokenizer = llguidance.LLTokenizer(_hidden(text), n_vocab=self.size, eos_token=space.specials.eos)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Raises ValueError, in one line, for a grammar that is none or that nothing can satisfy."""
        kind = type(grammar).__name__
        try:
            lark = grammar.lark()
            source = lark if "\nimage:" in lark else f"{lark}\n{IMAGE_RULE}"
            compiled = llguidance.LLMatcher.grammar_from_lark(source)
        except (ValueError, TypeError) as error:
            raise ValueError(f"not a usable {kind}: {_line(error)}") from error
        matcher = llguidance.LLMatcher(self.tokenizer, compiled)
        if matcher.is_error():
            raise ValueError(f"not a usable {kind}: {_line(matcher.get_error())}")
        return CompiledGrammar(matcher, self.size, draws=_names_image(lark))


class CompiledGrammar:
    """A grammar that is ready: every answer goes its own way from the same beginning. `draws`: it wants pictures."""

    def __init__(self, matcher: llguidance.LLMatcher, size: int, *, draws: bool) -> None:
        self.matcher, self.size, self.draws = matcher, size, draws

    def start(self) -> LLGuidanceMatcher:
        """A matcher at the beginning of an answer."""
        return LLGuidanceMatcher(self.matcher.deep_copy(), self.size)


class LLGuidanceMatcher:
    """llguidance's matcher behind the engine's contract."""

    def __init__(self, matcher: llguidance.LLMatcher, size: int) -> None:
        self.matcher, self.size = matcher, size
        self.bits = llguidance.numpy.allocate_token_bitmask(1, size)

    def mask(self) -> Tensor:
        """bool (text_size,): which ids may come next; none where the grammar is at its end."""
        if self.matcher.is_stopped():
            return torch.zeros(self.size, dtype=torch.bool)
        llguidance.numpy.fill_next_token_bitmask(self.matcher, self.bits, 0)
        words = torch.from_numpy(self.bits[0])
        bits = (words[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        return bits.flatten()[: self.size].bool()

    def consume(self, token: int) -> None:
        """Advance by one id, which the mask allowed."""
        if not self.matcher.is_stopped():
            self.matcher.consume_token(token)
            assert not self.matcher.is_error(), self.matcher.get_error()


def parse_json(answer: Sequence[Part]) -> Any:
    """The JSON document of an answer under a schema, with its pictures where the schema has them.

    Raises ValueError for an answer that is no whole document, such as one that was cut by its length.
    """
    pictures = {f"picture {uuid4()}": part for part in answer if isinstance(part, Image.Image)}
    names = iter(pictures)
    text = "".join(part if isinstance(part, str) else json.dumps(next(names)) for part in answer)

    def put_back(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put_back(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [put_back(inner) for inner in value]
        return pictures.get(value, value) if isinstance(value, str) else value

    try:
        return put_back(json.loads(text))
    except ValueError as error:
        raise ValueError(f"this answer is no whole JSON document: {error}") from error


def _rule(schema: Any, shared: Mapping[str, Any]) -> str:
    """A Lark expression: compact JSON for what holds no picture, written out piece by piece for what does.

    `shared` are the definitions that references in the whole schema point to.
    """
    if not isinstance(schema, Mapping):
        raise ValueError(f"a schema is an object, got {schema!r:.60}")
    if not _has_image(schema):
        return f"%json {json.dumps({**shared, **schema, 'x-guidance': {'whitespace_flexible': False}})}"
    kind = schema.get("type")
    if kind == "image":
        return "image"
    if kind == "object" and isinstance(schema.get("properties"), Mapping):
        properties = schema["properties"].items()
        parts = [f"{_quoted(json.dumps(key) + ':')} {_rule(value, shared)}" for key, value in properties]
        return f"{_quoted('{')} " + f" {_quoted(',')} ".join(parts) + f" {_quoted('}')}"
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        min_items = int(schema.get("minItems", 1))
        max_items = int(schema.get("maxItems", max(min_items, MAX_IN_A_LIST)))
        if not 1 <= min_items <= max_items:
            raise ValueError(
                f"an array with pictures has at least 1 item and at most maxItems, got {min_items} to {max_items}"
            )
        item = _rule(schema["items"], shared)
        more = f"({_quoted(',')} {item}){{{min_items - 1},{max_items - 1}}}"
        return f"{_quoted('[')} {item} {more} {_quoted(']')}"
    where = json.dumps(schema)[:80]
    raise ValueError(f"a picture is a property of an object or an item of an array, not in {where}")


def _has_image(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        return schema.get("type") == "image" or any(_has_image(value) for value in schema.values())
    return isinstance(schema, list) and any(_has_image(value) for value in schema)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _names_image(lark: str) -> bool:
    """Whether a grammar uses the rule `image`: outside strings and regular expressions."""
    bare = re.sub(r'"(\\.|[^"\\])*"|/(\\.|[^/\\\n])+/', "", lark)
    return re.search(r"\bimage\b(?!\s*:)", bare) is not None


def _hidden(text: TextTokenizer) -> str:
    """The tokenizer's JSON with other names for the special tokens, so that no text of a grammar is taken for one."""
    tokenizer = json.loads(text.to_json())
    for token in tokenizer["added_tokens"]:
        token["content"] = HIDDEN.get(token["content"], token["content"])
    vocabulary = tokenizer["model"].get("vocab")
    if isinstance(vocabulary, dict):
        tokenizer["model"]["vocab"] = {HIDDEN.get(name, name): number for name, number in vocabulary.items()}
    return json.dumps(tokenizer)


def _line(message: object) -> str:
    """The reason in one line, without the pictures of where it is."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("error: ")]
    whole = " ".join([*lines[:1], *reasons[:1]])
    return whole.split("failed to compile JSON schema: ")[-1] if lines else "no reason given"
