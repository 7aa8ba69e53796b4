"""What drawings are held against, on real parts."""

from __future__ import annotations

import torch

from tests.oracles.tiny import tiny_flow_pipeline, tiny_picture, tiny_pipeline
from unimodal.evaluation.drawing import image_span_check, redrawn


def test_drawings_under_the_grammar_are_all_well_formed_and_without_it_counted() -> None:
    pipeline = tiny_pipeline()
    assert image_span_check(pipeline, ["red"] * 10, guidance=2.0) == (10, 0)
    spans, malformed = image_span_check(pipeline, ["red"] * 10, guidance=1.0, constrained=False)
    assert spans >= 10 and malformed > 0


def test_a_model_is_redrawn_through_what_it_draws_with() -> None:
    """Latents with the flow branch, codes without it."""
    pipeline, discrete = tiny_flow_pipeline(), tiny_pipeline()
    images = torch.stack([pipeline.preprocess(tiny_picture(index)) for index in range(3)])
    autoencoder, tokenizer = pipeline.autoencoder, pipeline.image_tokenizer
    assert autoencoder is not None and tokenizer is not None
    torch.testing.assert_close(redrawn(pipeline, images), autoencoder.decode(autoencoder.encode(images)))
    codes = tokenizer.decode(tokenizer.encode(images)).clamp(-1, 1)
    torch.testing.assert_close(redrawn(discrete, images), codes)
    assert (redrawn(pipeline, images) - codes).abs().max() > 0.01
