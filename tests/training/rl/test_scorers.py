"""Rewards that models of transformers give: tiny ones in local folders, made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tests.oracles.tiny import tiny_text_tokenizer
from tests.training.rl.test_rewards import answered
from unimodal.training.rl.rewards.scorer import PictureScorer, TextScorer


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "max_position_embeddings": 32, "eos_token_id": len(words) - 1}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def test_a_picture_scorer_scales_the_cosine_of_words_and_picture(clip: Path) -> None:
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    answers = [answered(red), answered(blue), answered("no picture"), answered(red, blue)]
    found = PictureScorer(folder=clip, low=-1.0, high=1.0).score(answers)
    processor: Any = CLIPProcessor.from_pretrained(clip)
    model = CLIPModel.from_pretrained(clip).eval()
    inputs = processor(text=["say it", "say it"], images=[red, blue], return_tensors="pt", padding=True)
    with torch.inference_mode():
        output = model(**inputs)
        expected = (output.logits_per_text[0] / model.logit_scale.exp() + 1) / 2
    assert list(found) == pytest.approx([*expected.tolist(), 0.0, 0.0], abs=1e-5)
    assert found[0] != found[1]


def test_a_text_scorer_is_the_sigmoid_of_a_reward_model(tmp_path: Path) -> None:
    tiny_text_tokenizer().save(tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    config.num_labels = 1
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = TextScorer(folder=tmp_path).score([answered("a red circle"), answered("no")])
    assert all(0 < value < 1 for value in found)
    assert found[0] != found[1]


def test_a_folder_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        PictureScorer(folder=tmp_path / "none").score([answered(Image.new("RGB", (8, 8)))])
    with pytest.raises(ValueError, match="cannot be opened as a reward model"):
        TextScorer(folder=tmp_path).score([answered("a")])
    with pytest.raises(ValueError, match="low lies below high"):
        PictureScorer(folder=tmp_path, low=1.0, high=0.5)
