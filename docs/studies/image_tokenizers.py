"""Image tokenizers on pictures that are not flat shapes: bits a picture against what is left of it, and seconds.

    python docs/studies/image_tokenizers.py --emoji FOLDER --out runs/tokenizers

trains every tokenizer of ARMS for the same steps on Noto's emoji (FOLDER is where Debian's packages lie unpacked), then
measures held-out emoji and tiles of seven photographs that ship with scikit-image and scikit-learn, with JPEG at equal
bits beside each, and fills in docs/studies/image_tokenizers.md. Killed, it resumes when it is given again.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from runner import ROOT, Programs, fill_in
from torch import Tensor

from data_pipelines.failures import FailureLog
from data_pipelines.image_datamodule import ImageDataModule
from data_pipelines.images import to_image, to_tensor
from data_pipelines.sources.noto_emoji import NotoEmoji
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.losses import PerceptualLoss
from tokenizers_vq.metrics import psnr, ssim
from unimodal.terminal import say
from unimodal.training.callbacks.ceiling import bits_a_picture

SIDE, STEPS, BATCH = 64, 800, 32
PAGE = ROOT / "docs" / "studies" / "image_tokenizers.md"
PHOTOGRAPHS = {
    "skimage": ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "rocket.jpg"),
    "sklearn": ("china.jpg", "flower.jpg"),
}
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
PHOTOGRAPH_SIDE = 256
"""Of the shorter side, before a photograph is cut into tiles."""


@dataclass(frozen=True, kw_only=True)
class TokenizerArm:
    """A tokenizer to train."""

    name: str
    patch: int
    width: int
    quantizer: Mapping[str, Any]
    kind: str = "VQConfig"

    @property
    def folder(self) -> str:
        """Of its run."""
        return self.name.replace(" ", "_").replace(",", "").replace("+", "and")


VQ = {"dim": 8, "commitment": 1.0, "revive_below": 1.0}
ARMS = (
    TokenizerArm(name="8 x 8, VQ 1,024", patch=8, width=256, quantizer={**VQ, "codebook_size": 1024}),
    TokenizerArm(name="8 x 8, VQ 4,096", patch=8, width=256, quantizer={**VQ, "codebook_size": 4096}),
    TokenizerArm(name="8 x 8, FSQ 15,360", patch=8, width=256, kind="FSQConfig", quantizer={"levels": [8, 8, 8, 6, 5]}),
    TokenizerArm(name="8 x 8, LFQ 4,096", patch=8, width=256, kind="LFQConfig", quantizer={"bits": 12}),
    TokenizerArm(
        name="8 x 8, residual 2 x 1,024",
        patch=8,
        width=256,
        kind="ResidualVQConfig",
        quantizer={**VQ, "levels": 2, "level_size": 1024},
    ),
    TokenizerArm(
        name="8 x 8, residual 4 x 1,024",
        patch=8,
        width=256,
        kind="ResidualVQConfig",
        quantizer={**VQ, "levels": 4, "level_size": 1024},
    ),
    TokenizerArm(name="16 x 16, VQ 256", patch=4, width=128, quantizer={**VQ, "codebook_size": 256}),
    TokenizerArm(name="16 x 16, VQ 1,024", patch=4, width=128, quantizer={**VQ, "codebook_size": 1024}),
    TokenizerArm(name="16 x 16, FSQ 1,000", patch=4, width=128, kind="FSQConfig", quantizer={"levels": [8, 5, 5, 5]}),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row of the table."""

    name: str
    codes: int
    bits: float
    psnr: float
    ssim: float
    features: float
    photographs: float
    jpeg: float
    jpeg_bits: float
    seconds: float


class TokenizerRuns(Programs):
    """Trains what is missing."""

    def train(self, arm: TokenizerArm, emoji: Path, steps: int) -> None:
        """Leaves the tokenizer in the run's folder, and its seconds beside it."""
        root = self.out / arm.folder
        if (root / "seconds.json").is_file():
            return
        quantizer = {"class_path": f"tokenizers_vq.quantizers.{arm.kind}", "init_args": dict(arm.quantizer)}
        backbone = {
            "class_path": "tokenizers_vq.backbones.PatchBackboneConfig",
            "init_args": {"patch_size": arm.patch, "width": arm.width, "depth": 2},
        }
        settings = {
            "trainer.default_root_dir": root,
            "trainer.max_steps": steps,
            "trainer.val_check_interval": steps,
            "trainer.devices": 1,
            "model.init_args.backbone": json.dumps(backbone),
            "model.init_args.quantizer": json.dumps(quantizer),
            "model.init_args.out": root / "image_tokenizer",
            "data.init_args.source": "noto_emoji",
            "data.init_args.path": emoji,
            "data.init_args.place": "true",
            "data.init_args.batch_size": BATCH,
        }
        options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        config = ROOT / "configs" / "tokenizer" / "demo.yaml"
        seconds = self.run("train.py", "fit", "--config", str(config), *options)
        (root / "seconds.json").write_text(json.dumps({"seconds": seconds, "threads": 2 // self.at_once}))


def held_out_emoji(folder: Path) -> Tensor:
    """(B, 3, S, S) in [-1, 1]."""
    data = ImageDataModule(source="noto_emoji", path=folder, split="test", image_size=SIDE, validation_images=2)
    data.setup("test")
    return data.images.float() / 127.5 - 1


def photograph_tiles() -> Tensor:
    """(B, 3, S, S) in [-1, 1]: the photographs with a shorter side of PHOTOGRAPH_SIDE, cut without overlap.

    Raises SystemExit where a package is missing.
    """
    tiles = []
    for package, names in PHOTOGRAPHS.items():
        found = find_spec(package)
        if found is None or found.origin is None:
            raise SystemExit(
                "photographs ship with scikit-image and scikit-learn: pip install scikit-image scikit-learn"
            )
        for name in names:
            picture = Image.open(Path(found.origin).parent / FOLDERS[package] / name).convert("RGB")
            scale = PHOTOGRAPH_SIDE / min(picture.size)
            small = picture.resize([round(scale * side) for side in picture.size], Image.Resampling.LANCZOS)
            for top in range(0, small.height - SIDE + 1, SIDE):
                for left in range(0, small.width - SIDE + 1, SIDE):
                    tiles.append(to_tensor(small.crop((left, top, left + SIDE, top + SIDE))))
    return torch.stack(tiles)


def jpeg_at(images: Tensor, bits: float) -> tuple[float, float]:
    """(PSNR, bits a picture) of the best JPEG quality that takes at most `bits` on average, tables and headers not
    counted; of the worst quality where even that takes more."""
    best: tuple[float, float] | None = None
    for quality in (1, 2, 4, 6, 8, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80):
        coded = [_jpeg(to_image(image), quality) for image in images]
        size = float(np.mean([8 * count for count, _ in coded]))
        if best is not None and size > bits:
            return best
        copies = torch.stack([to_tensor(copy) for _, copy in coded])
        best = (float(psnr(copies, images).mean()), size)
    assert best is not None
    return best


def _jpeg(image: Image.Image, quality: int) -> tuple[int, Image.Image]:
    """Bytes of the entropy-coded scan, and what it decodes to."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    content = file.getvalue()
    start = content.rindex(b"\xff\xda")
    header = int.from_bytes(content[start + 2 : start + 4], "big")
    return len(content) - start - 2 - header - 2, Image.open(io.BytesIO(content)).convert("RGB")


@torch.inference_mode()
def reconstructed(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """Through codes and back."""
    return torch.cat([tokenizer.decode(tokenizer.encode(part)) for part in images.split(64)])


@torch.inference_mode()
def measure(arm: TokenizerArm, root: Path, emoji: Tensor, tiles: Tensor, features: PerceptualLoss) -> Measured:
    """All figures of a tokenizer that is trained."""
    tokenizer = ImageTokenizer.open(root / "image_tokenizer")
    copies = reconstructed(tokenizer, emoji)
    bits = bits_a_picture(tokenizer)
    jpeg, jpeg_bits = jpeg_at(emoji, bits)
    return Measured(
        name=arm.name,
        codes=tokenizer.layout.num_codes,
        bits=bits,
        psnr=float(psnr(copies, emoji).mean()),
        ssim=float(ssim(copies, emoji)),
        features=float(features(copies, emoji)),
        photographs=float(psnr(reconstructed(tokenizer, tiles), tiles).mean()),
        jpeg=jpeg,
        jpeg_bits=jpeg_bits,
        seconds=json.loads((root / "seconds.json").read_text())["seconds"],
    )


def table(rows: Sequence[Measured]) -> str:
    """In the order of their bits; a row on the frontier, which no row of as few bits excels, has its PSNR in bold."""
    lines = [
        "| tokenizer | codes | bits | PSNR | SSIM | feature distance | photographs | JPEG at bits | seconds |",
        "|---" * 9 + "|",
    ]
    for row in sorted(rows, key=lambda each: (each.bits, each.name)):
        best = all(other.psnr <= row.psnr for other in rows if other.bits <= row.bits)
        shown = f"**{row.psnr:.2f}**" if best else f"{row.psnr:.2f}"
        figures = (
            f"{row.codes} | {row.bits:,.0f} | {shown} | {row.ssim:.3f} | {row.features:.4f} | {row.photographs:.2f}"
        )
        lines.append(f"| {row.name} | {figures} | {row.jpeg:.2f} at {row.jpeg_bits:,.0f} | {row.seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    """Train, measure, fill in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("runs/tokenizers"))
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"of {BATCH} pictures (default {STEPS})")
    parser.add_argument("--at-once", type=int, default=2, help="trainings side by side (default 2)")
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME", help="some of the tokenizers")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    arms = [arm for arm in ARMS if given.only is None or arm.name in given.only]
    NotoEmoji(path=given.emoji, split="test", failures=FailureLog(limit=0.1))  # what is missing is said before training
    emoji, tiles, features = held_out_emoji(given.emoji), photograph_tiles(), PerceptualLoss()
    runs = TokenizerRuns(out=given.out, at_once=given.at_once)
    runs.each(lambda arm: runs.train(arm, given.emoji, given.steps), [(arm,) for arm in arms])
    rows = [measure(arm, given.out / arm.folder, emoji, tiles, features) for arm in arms]
    say(table(rows))
    if given.only is None:
        fill_in(PAGE, table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
