"""What libraries say at the start of a run that no user can act on: each line is named here with its reason."""

from __future__ import annotations

import logging
import warnings

HARMLESS = {
    r".*LightningCLI.s args parameter is intended to run.*": "the demo runs the commands of train.py in its process",
    r".*does not have many workers.*": "rows are packed faster than a step takes; data.num_workers is there to be set",
    r".*isinstance\(treespec, LeafSpec\).*": "Lightning's use of a function that torch will remove",
    r".*`IterableDataset` has `__len__`.*": "the stream is divided among ranks by its own state",
    r".*Checkpoint directory .* exists and is not empty.*": "a run that is resumed writes where it wrote before",
    r".*The `srun` command is available.*": "an advertisement",
    r".*torch.distributed.*pkg_resources.*": "a deprecation inside torch",
    r".*overridden `transfer_batch_to_device` in `LightningModule`.*": "prompts stay where they are on purpose",
    r".*Total length of `DataLoader` across ranks is zero.*": "nothing is held out, as the config says",
    r".*'set_vital' is deprecated.*": "a deprecation inside torchdata",
    r".*The dirpath has changed from.*": "scores of earlier checkpoints are not kept (save_top_k: 0)",
    r".*You defined a `validation_step` but have no `val_dataloader`.*": "nothing is held out, as the config says",
    r".*in eval mode at the start of training.*": "frozen parts stay in evaluation mode",
    r".*Using ModelCheckpoint with manual optimization.*": "a checkpoint after the step is what is wanted",
    r".*returned a view tensor.*": "no loss changes the scores of a head in place",
    r".*Detected call of `lr_scheduler.step\(\)` before.*": "float16 skips first steps until its loss scale fits",
    r".*`training_step` returned `None`.*": "the module steps its own optimizers",
}
"""Beginning of a warning, as a pattern -> why it says nothing to a user."""

QUIET = {
    "lightning.pytorch.utilities.rank_zero": "devices and tips; a GPU that is missing is an error elsewhere",
    "lightning.pytorch.accelerators.cuda": "which of several GPUs a rank takes is in CUDA_VISIBLE_DEVICES",
    "lightning.fabric.utilities.seed": "the seed is in the run's config.yaml",
    "lightning.fabric.utilities.distributed": "a line for each rank that starts",
    "torch.utils.cpp_extension": "CUDA's folder, where there is no GPU",
}
"""Logger that is heard from warnings on, or for the last from errors on -> why."""


def quieten() -> None:
    """Leave out what is named above, and nothing else."""
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR if name.startswith("torch") else logging.WARNING)
