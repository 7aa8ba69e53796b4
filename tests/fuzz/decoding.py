"""Fuzz the decoding engine: whatever a model says, its answers are well formed.

    python -m tests.fuzz.decoding --answers 10000

Random weights at temperature 2 answer in random batches: text, images and mixed answers in both layouts, with and
without guidance in its two forms, free text and JSON under schemas with and without pictures in them. Checked for
every answer: each boi is followed by exactly an image and eoi, no code stands outside an image, JSON parses and
validates, every row ends within its room.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import jsonschema
from PIL import Image

from data_pipelines.tokenize import make_token_space
from tests.oracles.tiny import tiny_image_tokenizer, tiny_model, tiny_picture, tiny_text_tokenizer
from tokenizers_vq.bundle_files import Tokenizers
from tokenizers_vq.layout import GridLayout
from unimodal.bundle import Bundle
from unimodal.generation.grammars import Choices, JSONSchema, parse_json
from unimodal.generation.modality import check_spans
from unimodal.generation.pipeline import Pipeline
from unimodal.generation.prompts import Answer
from unimodal.generation.requests import Request

CONTEXT = 400
SIZES = ((1, 3), (2, 2), (3, 1), (2, 3))
A_ROUND = 250
CHOICES = ("red", "a blue square", "no")
OBJECT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "sure": {"type": "boolean"},
        "count": {"type": "integer", "minimum": -5, "maximum": 120},
        "kinds": {"type": "array", "items": {"enum": ["circle", "square"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "sure", "count", "kinds"],
    "additionalProperties": False,
}
PICTURED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "caption": {"type": "string", "maxLength": 4},
        "image": {"type": "image"},
        "more": {"type": "array", "items": {"type": "image"}, "minItems": 1, "maxItems": 3},
        "about": OBJECT,
    },
}
WITH_NAMES = json.loads(json.dumps(PICTURED).replace('"image"}', '"string"}'))
"""The same schema for documents in which strings stand for the pictures."""

Settings = dict[str, Any]


def pipeline(layout: str) -> Pipeline:
    """Random weights over real tokenizers, with images of one size or of several."""
    text, image = tiny_text_tokenizer(), tiny_image_tokenizer()
    chosen = GridLayout(sizes=SIZES) if layout == "grid" else None
    space = make_token_space(text, image, chosen)
    return Pipeline(Bundle(tiny_model(space.vocab_size, max_length=CONTEXT), space, Tokenizers(text, image)))


def random_settings(random: Random) -> Settings:
    """How one answer is decoded."""
    settings: Settings = {"temperature": 2.0, "mode": random.choice(["mixed", "mixed", "text", "image"])}
    settings |= random.choice([{}, {}, {"top_k": 20}, {"top_p": 0.9}, {"top_k": 40, "top_p": 0.8}])
    settings |= random.choice([{}, {"guidance": 3.0}, {"guidance": 0.5}, {"guidance": 2.0, "image_guidance": 1.5}])
    settings |= random.choice([{}, {"guidance_schedule": "linear"}, {"guidance_schedule": "cosine"}])
    settings["max_new_tokens"] = random.randint(20, 80)
    if settings["mode"] != "image" and random.random() < 0.4:
        schema = random.choice([OBJECT, PICTURED] if settings["mode"] == "mixed" else [OBJECT])
        settings |= {"grammar": random.choice([JSONSchema(schema), JSONSchema(schema), Choices(CHOICES)])}
        settings["max_new_tokens"] = CONTEXT
    return settings


def faults(model: Pipeline, request: Request, settings: Settings, answer: Answer) -> list[str]:
    """What is wrong with an answer; empty if nothing is."""
    found, budget = [], request.budget(CONTEXT)
    spans, malformed = check_spans(answer.ids, model.token_space)
    pictures = sum(isinstance(part, Image.Image) for part in answer)
    if malformed or pictures != spans:
        found.append(f"{malformed} of {spans} images malformed, {pictures} decoded")
    specials = model.token_space.specials
    ended = answer.ids[-1] == specials.eos or (settings["mode"] == "image" and answer.ids[-1] == specials.eoi)
    if not (ended or len(answer.ids) == budget) or len(answer.ids) > budget:
        found.append(f"an answer of {len(answer.ids)} tokens has not ended, its token budget is {budget}")
    if (answer.finish == "length") == ended:
        found.append(f"an answer ended by {answer.ids[-1]} is called {answer.finish!r}")
    if not all(probability <= 1e-6 for probability in answer.log_probs):
        found.append("a probability above 1")
    return found + _text_faults(settings.get("grammar"), answer)


def _text_faults(grammar: Any, answer: Answer) -> list[str]:
    if grammar is None:
        return []
    if answer.finish != "end":
        return [f"a structured answer ended by {answer.finish}"]
    if isinstance(grammar, Choices):
        return [] if "".join(map(str, answer)) in CHOICES else [f"{answer} is none of the choices"]
    try:
        named = _names(parse_json(answer))
        jsonschema.validate(named, OBJECT if grammar.schema == OBJECT else WITH_NAMES)
    except (ValueError, jsonschema.ValidationError) as error:
        return [f"{answer}: {error}"]
    return []


def _names(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _names(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_names(inner) for inner in value]
    return "picture" if isinstance(value, Image.Image) else value


def fuzz(answers: int, seed: int = 0) -> Counter[str]:
    """Decode that many answers. Raises AssertionError with all faults; returns what was seen, counted."""
    random, seen = Random(seed), Counter[str]()
    models = {layout: pipeline(layout) for layout in ("fixed", "grid")}
    wrong: list[str] = []
    layouts = itertools.cycle(models)
    while seen["answers"] < answers:
        layout = next(layouts)
        model, count = models[layout], min(A_ROUND, -(-answers // 2), answers - seen["answers"])
        offered = ["a red circle", "is it blue?", *([tiny_picture(index), "red"] for index in range(8))]
        prompts = [random.choice(offered) for _ in range(count)]
        settings = [random_settings(random) for _ in range(count)]
        requests = [
            Request(prompt=ids, config=model.decode_config(**chosen), seed=random.randrange(2**31))
            for ids, chosen in zip(model.coder.encode(prompts), settings, strict=True)
        ]
        for request, chosen, answer in zip(
            requests, settings, model.answers(requests, batch_size=random.choice([1, 7, 32, 64])), strict=True
        ):
            wrong += [f"{layout} {chosen}: {fault}" for fault in faults(model, request, chosen, answer)]
            seen.update(answers=1, images=check_spans(answer.ids, model.token_space)[0], tokens=len(answer.ids))
            seen.update([layout, answer.finish, "structured" if "grammar" in chosen else "free"])
    assert not wrong, f"{len(wrong)} faults, such as " + " | ".join(wrong[:5])
    return seen


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuzz and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=10_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    seen = fuzz(options.answers, options.seed)
    print(f"0 faults in {seen.pop('answers')} answers: {dict(seen)}")  # noqa: T201


if __name__ == "__main__":
    main()
