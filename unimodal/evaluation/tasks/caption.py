"""Captioning: the model's caption of a picture against people's."""

from __future__ import annotations

import time
from typing import Any

from unimodal.evaluation.contract import (
    GREEDY,
    AnyToAnyModel,
    DocumentSource,
    Example,
    Reporter,
    Sampling,
    TaskResult,
    codec_of,
    silent,
)
from unimodal.evaluation.metrics.captions import bleu4, bleu_orders, cider, exact_match, has_words, rouge_l
from unimodal.evaluation.samples import Sample, answerable, read_samples

MAX_NEW_TOKENS = 32
NUM_EXAMPLES = 24


def evaluate(
    model: AnyToAnyModel,
    source: DocumentSource,
    *,
    sampling: Sampling = GREEDY,
    limit: int | None = None,
    batch_size: int = 256,
    reporter: Reporter = silent,
) -> TaskResult:
    """Caption every captioned picture among the first `limit`.

    A picture whose captions have no word, or which is too large for the model, is skipped by name. Raises ValueError
    when the source has no captions.
    """
    start = time.perf_counter()
    codec_of(model)
    max_new_tokens = sampling.max_new_tokens or MAX_NEW_TOKENS
    settings = sampling.to_dict() | {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    samples = _samples(model, source, limit, settings)
    prompts = [[sample.image] for sample in samples]
    outputs = model.generate(prompts, "text", progress=reporter("captions", len(samples)), **settings)
    captions = ["".join(part for part in parts if isinstance(part, str)).strip() for parts in outputs]
    references = [sample.captions for sample in samples]
    scores = {"exact_match": exact_match, "bleu4": bleu4, "rouge_l": rouge_l, "cider": cider}
    recipe = sampling.recipe() | {
        "max_new_tokens": max_new_tokens,
        "prompt_template": "image",
        "preprocessing": "border-pad to the model's image size",
        "bleu_orders": bleu_orders(references),
        "cider_variant": "CIDEr-D, document frequencies of the evaluated references",
    }
    step = max(1, len(samples) // NUM_EXAMPLES)
    examples = [
        Example(
            answer=caption,
            reference=" / ".join(sample.captions),
            right=exact_match([caption], [sample.captions]) == 1,
            images={"shown": sample.image},
        )
        for sample, caption in list(zip(samples, captions, strict=True))[::step][:NUM_EXAMPLES]
    ]
    return TaskResult(
        task="caption",
        metrics={name: score(captions, references) for name, score in scores.items()},
        n=len(samples),
        seconds=time.perf_counter() - start,
        recipe=recipe,
        examples=examples,
    )


def _samples(model: AnyToAnyModel, source: DocumentSource, limit: int | None, settings: dict[str, Any]) -> list[Sample]:
    """Captioned pictures, those skipped by name that cannot be captioned or scored."""
    found: list[Sample] = []
    for sample in read_samples(source, model, limit=limit):
        if any(map(has_words, sample.captions)):
            found.append(sample)
        elif sample.captions:
            source.failures.revoke(sample.key, "no reference caption with a word in it")
    names, prompts = [sample.key for sample in found], [[sample.image] for sample in found]
    samples = [found[number] for number in answerable(model, source, names, prompts, "text", settings)]
    if not samples:
        raise ValueError("the source has no captions: caption has nothing to compare with")
    return samples
