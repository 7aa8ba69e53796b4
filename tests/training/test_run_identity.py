"""A checkpoint belongs to a model and to data: another of either is refused in one line that names the difference."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.oracles.tiny import tiny_bundle, tiny_picture_folder, tiny_shards
from tests.oracles.tiny_training import ADAMW, Options, fit_arguments, logged
from tokenizers_vq.identity import check_finite, check_identity, check_weights, plain
from unimodal.training.cli import main

MUON: Options = {"model__optimizer": "MuonConfig"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def run_folder(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, saved."""
    root = tmp_path_factory.mktemp("run")
    main(fit_arguments(shards, root, trainer__max_steps=4))
    return root


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line of a command that is refused, or ends with another code."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == code and "Traceback" not in err
    [line] = [line for line in err.splitlines() if line.startswith("train.py: ")]
    return line


def resumed(shards: Path, run: Path, tmp_path: Path, **options: str | float) -> list[str]:
    checkpoint = run / "checkpoints" / "last.ckpt"
    return [*fit_arguments(shards, tmp_path / "again", **options), f"--ckpt_path={checkpoint}"]


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"model__trunk__dim": 32}, "trunk.dim was 16, now it is 32"),
        ({"model__trunk__num_layers": 3}, "trunk.num_layers was 2, now it is 3"),
        ({"model__trunk__hidden_dim": 40}, "trunk.hidden_dim was 24, now it is 40"),
        (ADAMW, "optimizer was 'MuonConfig', now it is 'AdamWConfig'"),
        ({"data__stream__length": 32}, "stream.length was 48, now it is 32"),
        ({"data__stream__seed": 1}, "stream.seed was 0, now it is 1"),
        ({"data__templates__image_first": 0.9}, "templates.image_first was 0.5, now it is 0.9"),
        ({"data__validation_share": 0.3}, "validation_share was 0.02, now it is 0.3"),
        ({"data__mixture__weights": "[1.0]"}, "mixture was None, now it is "),
    ],
)
def test_other_settings_are_refused_by_name(
    options: dict[str, str | float],
    difference: str,
    shards: Path,
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refusal(resumed(shards, run_folder, tmp_path, **options), capsys)
    assert difference in line and "belongs to another run" in line and "start anew" in line


def test_other_shards_are_refused(
    shards: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = tiny_shards(tmp_path / "fewer", count=10)
    assert "shards[0].documents was 24, now it is 10" in refusal(resumed(fewer, run_folder, tmp_path), capsys)
    both = [*fit_arguments(shards, tmp_path / "b", data__shards=f"[{shards}, {shards}]")]
    both.append(f"--ckpt_path={run_folder / 'checkpoints' / 'last.ckpt'}")
    assert "the number of shards was 1, now it is 2" in refusal(both, capsys)


def test_the_same_shards_elsewhere_and_settings_that_may_change_resume(
    shards: Path, run_folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    options: dict[str, str | float] = {"trainer__max_steps": 6, **MUON, "model__optimizer__learning_rate": 0.001}
    main(resumed(moved, run_folder, tmp_path, **options, data__stream__rows=2, model__trunk__dropout=0.1))
    assert set(logged(tmp_path / "again", "train/loss")) == {4, 5}


def test_a_checkpoint_without_an_identity_is_compared_by_its_weights(
    shards: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    del old["belongs_to"]
    (tmp_path / "checkpoints").mkdir()
    torch.save(old, tmp_path / "checkpoints" / "last.ckpt")
    line = refusal(resumed(shards, tmp_path, tmp_path, model__trunk__dim=32), capsys)
    assert "belongs to another model" in line and " there and " in line


def tokenizer_arguments(pictures: Path, root: Path, **options: str | float) -> list[str]:
    settings: dict[str, str | float] = {
        "trainer.max_steps": 4,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": str(root),
        "trainer.num_sanity_val_steps": 0,
        "trainer.val_check_interval": 4,
        "trainer.check_val_every_n_epoch": "null",
        "checkpoint.every_n_train_steps": 2,
        "model": "ImageTokenizerModule",
        "model.image_size": 16,
        "model.out": str(root / "out"),
        "model.backbone": "tokenizers_vq.backbones.PatchBackboneConfig",
        "model.backbone.width": 16,
        "model.backbone.depth": 1,
        "model.quantizer": "tokenizers_vq.quantizers.VQConfig",
        "model.quantizer.codebook_size": 16,
        "data": "ImageDataModule",
        "data.source": "imagefolder",
        "data.path": str(pictures),
        "data.image_size": 16,
        "data.batch_size": 4,
        **{name.replace("__", "."): value for name, value in options.items()},
    }
    return ["fit", "--seed_everything=7", *(f"--{name}={value}" for name, value in settings.items())]


def test_an_image_tokenizer_resumes_with_its_config_and_its_pictures_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tiny_picture_folder(tmp_path / "pictures", 12)
    main(tokenizer_arguments(pictures, tmp_path / "run"))
    last = f"--ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    longer = tokenizer_arguments(pictures, tmp_path / "run", trainer__max_steps=6)
    assert "model.backbone.width was 16, now it is 32" in refusal([*longer, "--model.backbone.width=32", last], capsys)
    assert "codebook_size was 16, now it is 32" in refusal(
        [*longer, "--model.quantizer.codebook_size=32", last], capsys
    )
    assert "batch_size was 4, now it is 2" in refusal([*longer, "--data.batch_size=2", last], capsys)
    fewer = tiny_picture_folder(tmp_path / "fewer", 8)
    assert "pictures.count was 12, now it is 8" in refusal([*longer, f"--data.path={fewer}", last], capsys)
    main([*longer, last])
    assert (tmp_path / "run" / "out" / "model.safetensors").is_file()


# -- not-a-number


@pytest.mark.parametrize("module", ["ImageTokenizerModule", "AutoencoderModule"])
def test_a_loss_that_is_not_a_number_stops_and_writes_nothing(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tiny_picture_folder(tmp_path / "pictures", 12)
    arguments = tokenizer_arguments(pictures, tmp_path / "run", trainer__max_steps=20)
    if module == "AutoencoderModule":
        quantizer = ("--model.quantizer", "--model=")
        arguments = [argument for argument in arguments if not argument.startswith(quantizer)]
        arguments.insert(2, f"--model={module}")
    line = refusal([*arguments, "--model.optimizer.learning_rate=1e25"], capsys)
    assert "the gradient norm is" in line and "lower the learning rate" in line
    assert not (tmp_path / "run" / "out").exists()


def test_a_decoder_that_diverges_stops_in_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(fit_arguments(shards, tmp_path, **MUON, model__optimizer__learning_rate=1e30), capsys, code=3)
    assert "the gradient norm is" in line and "3 steps in a row" in line and not (tmp_path / "model").exists()


@pytest.mark.parametrize("rate", ["nan", "inf", "-1"])
def test_a_learning_rate_is_a_finite_number(
    rate: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(fit_arguments(shards, tmp_path, **MUON, model__optimizer__learning_rate=rate), capsys)
    assert "learning_rate" in line and "not accepted" not in line


def test_weights_that_are_not_finite_are_neither_written_nor_opened(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    import unimodal

    bundle = tiny_bundle(tmp_path / "model")
    for folder in (bundle, bundle / "image_tokenizer"):
        file = folder / "model.safetensors"
        sound = load_file(file)
        name = next(name for name, weight in sound.items() if weight.is_floating_point())
        save_file({**sound, name: torch.full_like(sound[name], float("inf"))}, file)
        with pytest.raises(ValueError, match="not finite numbers"):
            unimodal.load(bundle)
        save_file(sound, file)
    model = unimodal.load(bundle)
    with torch.no_grad():
        next(iter(model.model.parameters())).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"other is not written: .* holds values that are not finite numbers"):
        model.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


# -- the comparisons themselves


def test_the_first_difference_is_named_wherever_it_is() -> None:
    saved = plain({"a": {"b": [1, 2]}, "c": 1})
    check_identity(saved, {"a": {"b": (1, 2)}, "c": 1}, "it")
    check_identity(None, {"a": 1}, "it")
    for present, named in (
        ({"a": {"b": [1, 3]}, "c": 2}, r"a\.b\[1\] was 2, now it is 3"),
        ({"a": {"b": [1]}, "c": 1}, r"a\.b was \[1, 2\], now it is \[1\]"),
        ({"a": None, "c": 1}, r"a was \{'b': \[1, 2\]\}, now it is None"),
        ({"a": {"b": [1, 2]}, "c": 1, "d": 5}, "d was None, now it is 5"),
    ):
        with pytest.raises(ValueError, match=named):
            check_identity(saved, present, "it")


def test_weights_are_compared_by_name_and_shape() -> None:
    have = {"a": torch.zeros(2), "b": torch.zeros(3)}
    check_weights(have, dict(have), "it")
    for saved, named in (
        ({"a": torch.zeros(2)}, "holds no b"),
        ({**have, "c": torch.zeros(1)}, "holds c, which this model has not"),
        ({**have, "b": torch.zeros(4)}, r"b is \(4,\) there and \(3,\) here"),
    ):
        with pytest.raises(ValueError, match=named):
            check_weights(saved, have, "it")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_value_is_found_and_large_ones_are_not_bad(bad: float, dtype: torch.dtype) -> None:
    large = torch.full((64, 64), 6e4, dtype=dtype)
    check_finite({"w": large, "n": torch.zeros(2, dtype=torch.int64)}, "it")
    large[3, 5] = bad
    with pytest.raises(ValueError, match="it: w holds values"):
        check_finite({"v": torch.zeros(1), "w": large}, "it")
