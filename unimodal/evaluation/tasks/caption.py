"""Captioning: what the model says of a picture against what people said."""

from __future__ import annotations

import time

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
from unimodal.evaluation.metrics.captions import bleu4, bleu_orders, cider, exact_match, rouge_l
from unimodal.evaluation.samples import read_samples

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
    """Caption every captioned picture among the first `limit`. Raises ValueError when the source has no captions."""
    start = time.perf_counter()
    codec_of(model)
    samples = [sample for sample in read_samples(source, model, limit=limit) if sample.captions]
    if not samples:
        raise ValueError("the source has no captions: caption has nothing to compare with")
    max_new_tokens = sampling.max_new_tokens or MAX_NEW_TOKENS
    outputs = model.generate(
        [[sample.image] for sample in samples],
        "text",
        progress=reporter("captions", len(samples)),
        **sampling.to_dict() | {"max_new_tokens": max_new_tokens, "batch_size": batch_size},
    )
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
