"""Several ranks learn one codebook for the encoder that they share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.oracles.tiny_training import ROOT
from tokenizers_vq.quantizers import VQ, VQConfig

TWO_RANKS = """
import sys
from pathlib import Path
import lightning as L, torch
from torch.utils.data import DataLoader
from tokenizers_vq.discriminator import AdversarialLossConfig
from tokenizers_vq.module import ImageTokenizerModule
from tokenizers_vq.backbones import PatchBackboneConfig
from tokenizers_vq.quantizers import VQConfig

folder = Path(sys.argv[1])

class Data(L.LightningDataModule):
    def train_dataloader(self):
        generator = torch.Generator().manual_seed(self.trainer.global_rank)
        return DataLoader([torch.rand(8, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(4)], batch_size=None)

    def val_dataloader(self):
        return self.train_dataloader()

torch.manual_seed(0)
module = ImageTokenizerModule(
    image_size=16, backbone=PatchBackboneConfig(width=16, depth=1), quantizer=VQConfig(codebook_size=16, dim=4),
    adversarial=AdversarialLossConfig(start=2, width=8) if sys.argv[2] == "adversarial" else None,
)
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=4, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, use_distributed_sampler=False, default_root_dir=folder,
)
trainer.fit(module, datamodule=Data())
used = float(trainer.callback_metrics["val/codebook_use"])
state = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("perceptual")}
torch.save({"state": state, "used": used}, folder / f"rank-{trainer.global_rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "adversarial"])
def test_two_ranks_have_the_same_weights_after_training_on_other_pictures(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), kind], env=environment, timeout=600, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    assert one["used"] == other["used"]
    for name, tensor in one["state"].items():
        torch.testing.assert_close(other["state"][name], tensor, rtol=0, atol=0, msg=name)


def test_a_codebook_that_joins_other_ranks_keeps_what_it_knows() -> None:
    quantizer = VQ(VQConfig(codebook_size=8, dim=4))
    quantizer(torch.randn(2, 16, 4))
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.join_ranks()
    after = quantizer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
