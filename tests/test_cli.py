"""The command lines: wrong use is one line and exit code 2, damage is 1, and the chain works end to end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.shards import ShardWriter, TokenDocument, TokenSegment, open_manifest
from tests.oracles.tiny import (
    IMAGE_SIZE,
    tiny_bundle,
    tiny_flow_pipeline,
    tiny_image_tokenizer,
    tiny_picture,
    tiny_picture_folder,
    tiny_shards,
)
from tests.oracles.tiny_training import ROOT
from tokenizers_vq.bundle_files import TEXT_TOKENIZER
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace
from unimodal.cli import main
from unimodal.generation import forward
from unimodal.training.cli import main as train


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bundles `model`, `flow` (with the flow branch) and `lost` (without its autoencoder), pictures
    `data`, an image tokenizer `codes`, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("shared")
    tiny_bundle(folder / "model")
    for name in ("flow", "lost"):
        tiny_flow_pipeline().save(folder / name)
    shutil.rmtree(folder / "lost" / "autoencoder")
    tiny_picture_folder(folder / "data", 12)
    tiny_image_tokenizer().save(folder / "codes")
    (folder / "noise.png").write_bytes(b"no picture")
    return folder


TOKENIZE = "tokenize --source imagefolder --path {data} --image-tokenizer {codes} --out {new}"
WRONG_USES = [
    ("", "required: command"),
    ("fly", "invalid choice: 'fly'"),
    ("tokenize", "required: --source, --image-tokenizer, --out"),
    ("tokenize --source imagefolder --image-tokenizer {codes} --out {new} --copies two", "invalid int value: 'two'"),
    ("tokenize --source imagefolder --path {data} --image-tokenizer {absent} --out {new}", "hold an image tokenizer"),
    ("tokenize --source imagefolder --path {absent} --image-tokenizer {codes} --out {new}", "is not a folder"),
    ("tokenize --source imagefolder --image-tokenizer {codes} --out {new}", "needs a path"),
    ("tokenize --source pictures --path {data} --image-tokenizer {codes} --out {new}", "unknown source 'pictures'"),
    ("tokenize --source easy_vqa --split middle --image-tokenizer {codes} --out {new}", "middle"),
    ("tokenize --source imagefolder --path {data} --image-tokenizer {codes} --out {new} --augment spin", "'spin'"),
    ("tokenize --source imagefolder --path {data} --image-tokenizer {codes} --out {new} --copies 2", "augmentation"),
    ("tokenize --source imagefolder --path {data} --image-tokenizer {codes} --out {new} --copies 0", "copy"),
    ("tokenize --source imagefolder --path {data} --image-tokenizer {codes} --out {new} --text-vocabulary 9", "263"),
    (
        "tokenize --source imagefolder --path {data} --image-tokenizer {codes} --out {new} --text-tokenizer {absent}",
        "is missing",
    ),
    ("inspect", "required: path"),
    ("inspect {absent}", "is not a folder"),
    ("generate --prompt a --out {new}", "required: --model"),
    ("generate --model {absent} --prompt a --out {new}", "is not a folder"),
    ("generate --model {data} --prompt a --out {new}", "does not hold a model"),
    ("generate --model {model} --out {new}", "give --prompt, --image or both"),
    ("generate --model {model} --prompt a --out {new} --mode video", "'video'"),
    ("generate --model {model} --prompt a --out {new} --temperature -1", "temperature"),
    ("generate --model {model} --prompt a --out {new} --temperature hot", "invalid float value: 'hot'"),
    ("generate --model {model} --prompt a --out {new} --temperature nan", "temperature"),
    ("generate --model {model} --prompt a --out {new} --top-p 0", "top_p"),
    ("generate --model {model} --prompt a --out {new} --top-k -1", "top_k"),
    ("generate --model {model} --prompt a --out {new} --guidance -2", "guidance"),
    ("generate --model {model} --prompt a --out {new} --max-new-tokens 0", "max_new_tokens"),
    ("generate --model {model} --prompt a --out {new} --number 0", "--number is at least 1"),
    (
        "generate --model {model} --prompt a --out {new} --guidance-schedule fast",
        "constant, linear, cosine, got 'fast'",
    ),
    ("generate --model {model} --prompt a --out {new} --image-guidance -1", "guidance"),
    ("generate --model {model} --prompt a --out {new} --aspect-ratio 2", "draws 2x2 codes and no other size"),
    ("generate --model {model} --prompt a --out {new} --json-schema {absent}", "is not a file"),
    ("generate --model {model} --prompt a --out {new} --json-schema {noise}", "noise.png: "),
    ("generate --model {model} --prompt a --out {new} --regex [", "not a usable Regex"),
    ("generate --model {model} --prompt a --out {new} --choices", "expected at least one argument"),
    ("generate --model {model} --prompt a --out {new} --mode image --choices a", "a grammar rules text"),
    ("generate --model {model} --prompt a --out {new} --choices a --regex b", "not allowed with argument"),
    ("generate --model {model} --prompt a --out {new} --temperature 1e-40", "0 or at least 0.0001"),
    ("generate --model {model} --prompt a --out {new} --seed 99999999999999999999", "a seed is a whole number"),
    ("generate --model {model} --prompt a --out /proc/none/x", "/proc/none"),
    ("generate --model {model} --prompt a --out {new} --stream --number 2", "--stream shows one answer"),
    (
        "generate --model {model} --prompt a --out {new} --steps 8",
        "flow branch, and this model has none",
    ),
    ("generate --model {model} --prompt a --out {new} --solver heun", "settings of the flow branch"),
    ("generate --model {flow} --prompt a --out {new} --steps 0", "number of steps"),
    ("generate --model {flow} --prompt a --out {new} --solver rk4", "euler, heun"),
    ("generate --model {flow} --prompt a --out {new} --aspect-ratio 2", "no other size"),
    ("generate --model {lost} --prompt a --out {new}", "no autoencoder folder"),
    (TOKENIZE + " --autoencoder {absent}", "absent"),
    (TOKENIZE + " --most-patches 9", "goes with --patch"),
    (TOKENIZE + " --patch 0", "at least one pixel"),
    (TOKENIZE + " --patch 8 --most-patches -4", "at least one pixel"),
    ("generate --model {model} --prompt a --out {new} --think --mode text", "goes with mode 'image'"),
    ("generate --model {model} --prompt a --out {new} --think --mode image --stream", "give one of them"),
    (TOKENIZE + " --autoencoder {codes}", "codes"),
    ("demo --branch diffusion --out {new}", "discrete, flow"),
    ("generate --model {model} --image {absent} --out {new}", "is not a file"),
    ("generate --model {model} --image {noise} --out {new}", "cannot be read as an image"),
    ("generate --model {model} --prompt a --out {noise}", "noise.png"),
    ("evaluate --source easy_vqa --model {model} --out {new}", "required: --task"),
    ("evaluate --source easy_vqa --model {model} --task poetry --out {new}", "poetry"),
    ("evaluate --source nowhere --model {model} --task vqa --out {new}", "unknown source 'nowhere'"),
    ("evaluate --source easy_vqa --model {model} --task caption --choices a --out {new}", "they go with task vqa"),
    ("evaluate --source imagefolder --path {data} --model {model} --task edit --out {new}", "known for easy_vqa alone"),
    ("evaluate --source easy_vqa --model {absent} --task vqa --out {new}", "is not a folder"),
    ("evaluate --source imagefolder --path {absent} --model {model} --task vqa --out {new}", "is not a folder"),
    ("import-hf {data}", "required: DST"),
    ("import-hf {absent} {new}", "is not a folder"),
    ("import-hf {data} {new} --image-tokenizer {codes}", "config.json is missing"),
    ("import-hf {model} {new}", "model type None cannot be imported"),
    ("export-hf {model}", "required: DST"),
    ("export-hf {absent} {new}", "is not a folder"),
    ("export-hf {data} {new}", "does not hold a model"),
    ("export-hf {model} {data}", "not an empty folder"),
    ("demo --fast", "unrecognized arguments: --fast"),
]


@pytest.mark.parametrize(("line", "reason"), WRONG_USES, ids=[line or "nothing" for line, _ in WRONG_USES])
def test_wrong_use_is_one_line_and_exit_code_2(
    line: str, reason: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: shared / name for name in ("model", "data", "codes", "flow", "lost")}
    places |= {"noise": shared / "noise.png", "absent": tmp_path / "absent", "new": tmp_path / "new"}
    try:
        code = main([word.format(**places) for word in line.split()])
    except SystemExit as stopped:
        code = stopped.code
    errors = capsys.readouterr().err
    assert (code, errors.count("\n")) == (2, 1), errors
    assert errors.startswith("unimodal") and reason in errors
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("model", ["model", "flow"])
def test_a_picture_that_was_thought_about_lies_beside_its_plan(model: str, shared: Path, tmp_path: Path) -> None:
    asked = ["generate", "--model", str(shared / model), "--prompt", "a red circle", "--mode", "image", "--think"]
    assert main([*asked, "--out", str(tmp_path / "drawn"), "--number", "2"]) == 0
    lines = (tmp_path / "drawn" / "answer.txt").read_text().splitlines()
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2 and len(lines) >= 2


TRANSFORMER = "fit --model TransformerModule"
TRAINING_MISTAKES = [
    ("", "subcommand"),
    ("fly", "fly"),
    ("fit --config missing.yaml", "missing.yaml"),
    ("fit --model Nothing", "Nothing"),
    ("fit --model TransformerModule --model.colour red", "colour"),
    (
        "fit --model TransformerModule --model.trunk.num_heads 3 --data TokenDataModule --data.shards [x]",
        "heads must divide",
    ),
    ("fit --model TransformerModule --model.trunk.dim wide --data TokenDataModule --data.shards [x]", "wide"),
    ("fit --model TransformerModule --data TokenDataModule --data.shards [{absent}]", "manifest.json"),
    ("fit --model TransformerModule --data TokenDataModule --data.shards []", "at least one folder"),
    ("fit --model TransformerModule --data TokenDataModule --data.shards [{absent}] --ckpt_path {absent}", "absent"),
    ("fit --model ImageTokenizerModule --data ImageDataModule --data.source nowhere", "unknown source 'nowhere'"),
    ("fit --model TransformerModule --data ImageDataModule", "trains on a TokenDataModule"),
    ("fit --trainer.max_stepps 3", "max_stepps"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "reason"), TRAINING_MISTAKES, ids=[line or "nothing" for line, _ in TRAINING_MISTAKES]
)
def test_wrong_use_of_training_is_one_line_and_exit_code_2(
    line: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        train([word.format(absent=tmp_path / "absent") for word in line.split()])
    errors = [line for line in capsys.readouterr().err.splitlines() if line]
    assert stopped.value.code == 2 and len(errors) == 1, errors
    assert errors[0].startswith("train.py: ") and reason in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["train.py", "fit", "--config", "missing.yaml"], "missing.yaml"),
        (["train.py", "fit", "--config", "configs/run/demo.yaml", "--model.init_args.colour=red"], "colour"),
        (["-c", "from unimodal.cli import main; main()", "inspect", "absent"], "absent is not a folder"),
    ],
)
def test_wrong_use_of_the_programs_themselves_is_one_line_and_exit_code_2(command: list[str], reason: str) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert reason in done.stderr and done.stdout == ""


def _flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


SHARD_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda folder: _flip_a_byte(folder / "000000.tar"), "SHA-256"),
    "a missing shard": (lambda folder: (folder / "000001.tar").unlink(), "not in the folder"),
    "a shard too many": (lambda folder: (folder / "000009.tar").write_bytes(b""), "not in the manifest"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "holds no manifest.json"),
    "a broken manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
}


@pytest.mark.parametrize(("damage", "reason"), SHARD_DAMAGES.values(), ids=SHARD_DAMAGES.keys())
def test_inspect_answers_damaged_shards_with_1(
    damage: Callable[[Path], object], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tiny_shards(tmp_path / "shards")
    assert main(["inspect", str(shards)]) == 0
    damage(shards)
    assert main(["inspect", str(shards)]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and reason in errors


def test_inspect_shows_documents_as_text_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = tiny_shards(tmp_path / "shards")
    page = tmp_path / "documents.html"
    assert main(["inspect", str(shards), "--html", str(page), "--documents", "5"]) == 0
    shown = page.read_text()
    assert shown.count('class="card document"') == shown.count("data:image/png;base64,") == 5
    assert shown.count("is it red?") == 5 and "5 of 24 documents" in shown
    assert "train-000001" in shown and "train-000020" in shown, "spread over both shards"
    assert main(["inspect", str(shards), "--html", str(page), "--documents", "1000"]) == 0
    assert page.read_text().count('class="card document"') == 24
    capsys.readouterr()
    assert main(["inspect", str(shards), "--html", str(page), "--documents", "0"]) == 2
    assert main(["inspect", str(shards), "--html", str(tmp_path / "absent" / "page.html")]) == 2
    assert main(["inspect", str(tiny_bundle(tmp_path / "model")), "--html", str(page)]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_text_in_shards_cannot_become_a_part_of_the_page(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards")
    text = TextTokenizer.open(shards / TEXT_TOKENIZER)
    space = TokenSpace.from_dict(open_manifest(shards).token_space)
    ids = np.array(text.encode("<script>alert(1)</script>"))
    with ShardWriter(tmp_path / "evil", space, image_policy={}, source={}) as writer:
        writer.write(TokenDocument(key="<b>k", segments=(TokenSegment(kind="text", role="text", ids=ids),)))
    for name in (TEXT_TOKENIZER, "image_tokenizer"):
        shutil.copytree(shards / name, tmp_path / "evil" / name)
    assert main(["inspect", str(tmp_path / "evil"), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "<b>k" not in page


@pytest.mark.parametrize(
    "file", ["model.safetensors", f"{TEXT_TOKENIZER}/tokenizer.json", "image_tokenizer/config.json"]
)
def test_inspect_answers_a_damaged_bundle_with_1(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path / "model")
    assert main(["inspect", str(bundle)]) == 0
    (bundle / file).write_bytes((bundle / file).read_bytes()[:50])
    assert main(["inspect", str(bundle)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_generate_writes_its_pictures_and_texts(shared: Path, tmp_path: Path) -> None:
    tiny_picture(3).convert("RGBA").resize((30, 20)).save(tmp_path / "shown.png")
    common = ["generate", "--model", str(shared / "model"), "--number", "3", "--prompt", "a red circle"]
    assert main([*common, "--mode", "image", "--out", str(tmp_path / "drawn")]) == 0
    names = [f"{index:03d}-0.png" for index in range(3)]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == sorted([*names, "answer.txt"])
    assert (tmp_path / "drawn" / "answer.txt").read_text().split() == [f"[{name}]" for name in names]
    for name in names:
        assert Image.open(tmp_path / "drawn" / name).size == (IMAGE_SIZE, IMAGE_SIZE)
    asked = [*common, "--mode", "text", "--image", str(tmp_path / "shown.png"), "--out", str(tmp_path / "told")]
    assert main([*asked, "--max-new-tokens", "5"]) == 0
    assert [path.name for path in (tmp_path / "told").iterdir()] == ["answer.txt"]


def test_generate_answers_under_a_schema_and_shows_an_answer_as_it_comes(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["a", "b"]}, "image": {"type": "image"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    common = [
        "generate",
        "--model",
        str(shared / "model"),
        "--prompt",
        "red",
        "--json-schema",
        f"{tmp_path}/schema.json",
    ]
    for more in ([], ["--stream"]):
        out = tmp_path / f"out{len(more)}"
        assert main([*common, "--max-new-tokens", "50", "--out", str(out), *more]) == 0
        first, picture, last = (out / "answer.txt").read_text().splitlines()
        assert json.loads(f'{first}"{picture}"{last}') in ({"name": name, "image": "[000-1.png]"} for name in "ab")
        assert sorted(path.name for path in out.iterdir()) == ["000-1.png", "answer.txt"]
        assert f"{first}[000-1.png]{last}" in capsys.readouterr().out.replace("\n", "")
    asked = ["generate", "--model", str(shared / "model"), "--prompt", "red", "--mode", "text"]
    assert main([*asked, "--choices", "yes", "no", "--dtype", "bfloat16", "--out", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c" / "answer.txt").read_text().strip() in ("yes", "no")


def test_compile_is_asked_of_the_engine(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forward, "can_build_for_cpu", lambda: False)
    asked = ["generate", "--model", str(shared / "model"), "--prompt", "red", "--mode", "text"]
    assert main([*asked, "--out", str(tmp_path / "plain")]) == 0 and not caplog.text
    assert main([*asked, "--out", str(tmp_path / "compiled"), "--compile"]) == 0
    assert "decoding runs uncompiled" in caplog.text


def test_a_folder_of_pictures_goes_through_tokenize_training_inspect_and_generate(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--source", "imagefolder", "--path", str(shared / "data")]
    shards, run = tmp_path / "shards", tmp_path / "run"
    tokens = ["tokenize", *source, "--image-tokenizer", str(shared / "codes"), "--out", str(shards)]
    assert main([*tokens, "--text-vocabulary", "300", "--copies", "2", "--augment", "flip,place"]) == 0
    assert main(["inspect", str(shards)]) == 0
    assert main(tokens) == 2 and "already holds shards" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["train.py"])
    model = "--model=TransformerModule --model.dim=16 --model.num_layers=1 --model.hidden_dim=16 --model.compile=false"
    data = f"--data=TokenDataModule --data.shards=[{shards}] --data.stream.length=64 --data.stream.rows=2"
    trainer = f"--trainer.max_steps=2 --trainer.accelerator=cpu --trainer.default_root_dir={run} --samples.every=2"
    train(["fit", *model.split(), *data.split(), *trainer.split(), "--data.validation_share=0.3"])
    assert list((run / "samples").glob("answers-*.txt")) and list((run / "samples").glob("drawn-*.png"))
    assert main(["inspect", str(run / "model")]) == 0
    drawn = ["generate", "--model", str(run / "model"), "--prompt", "a red picture", "--mode", "image"]
    assert main([*drawn, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "000-0.png").is_file()
