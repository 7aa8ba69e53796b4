"""A loss that is not a number on one rank alone stops both: none waits for the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracles.tiny_training import ROOT

TWO_RANKS = """
import sys
from pathlib import Path
import lightning as L, torch
from torch.utils.data import DataLoader
from tokenizers_vq.module import ImageTokenizerModule
from tokenizers_vq.backbones import PatchBackboneConfig

folder = Path(sys.argv[1])

class Data(L.LightningDataModule):
    def train_dataloader(self):
        images = torch.rand(4, 3, 16, 16) * 2 - 1
        bad = torch.full_like(images, float("nan"))
        batches = [images, bad if self.trainer.global_rank == 1 else images, images, images]
        return DataLoader(batches, batch_size=None)

module = ImageTokenizerModule(image_size=16, backbone=PatchBackboneConfig(width=16, depth=1), out=folder / "out")
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=4, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, use_distributed_sampler=False, default_root_dir=folder,
)
try:
    trainer.fit(module, datamodule=Data())
except FloatingPointError as error:
    (folder / f"rank-{trainer.global_rank}").write_text(str(error))
"""


@pytest.mark.slow
def test_both_ranks_stop_at_the_step_in_which_one_of_them_has_no_number(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, timeout=600, capture_output=True)
    said = [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)]
    assert said[0] == said[1] == "the gradient norm is nan at step 1: lower the learning rate"
    assert not (tmp_path / "out").exists()
