"""What an image tokenizer is worth, sentence when its training ends: no drawing is better than a reconstruction."""

from __future__ import annotations

import math

import lightning as L

from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.module import ImageTokenizerModule
from unimodal.terminal import say

GOOD_SSIM = 0.9
"""Below it, what is small in a picture is lost: faces and hands of emoji of 64 pixels at 0.74 (docs/log.md)."""


class Ceiling(L.Callback):
    """Says bits a picture and held-out quality, and what to change where that is low."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = trainer.callback_metrics
        measured = "val/psnr" in found and "val/ssim" in found
        if trainer.is_global_zero and measured and isinstance(pl_module, ImageTokenizerModule):
            psnr, ssim = float(found["val/psnr"]), float(found["val/ssim"])
            say(ceiling(pl_module.tokenizer, psnr, ssim))


def bits_a_picture(tokenizer: ImageTokenizer) -> float:
    """Codes of a square picture times the logarithm of how many a place chooses from."""
    quantizer = tokenizer.config.quantizer
    return tokenizer.layout.num_codes * math.log2(quantizer.codebook_size / quantizer.codes_of_a_place)


def ceiling(tokenizer: ImageTokenizer, psnr: float, ssim: float) -> str:
    """One or two sentences. psnr in dB and ssim are of held-out pictures."""
    codes, size = tokenizer.layout.num_codes, tokenizer.image_size
    sentence = (
        f"{codes} codes, {bits_a_picture(tokenizer):,.0f} bits, for a picture of {size} x {size}: held-out pictures "
        f"come back with {psnr:.1f} dB and SSIM {ssim:.2f}, and no drawing will be better than that"
    )
    if ssim >= GOOD_SSIM:
        return sentence
    more = "a smaller patch_size, several codes a place (ResidualVQConfig), a larger codebook, or more steps"
    return f"{sentence}. What is small in them is lost: take {more}"
