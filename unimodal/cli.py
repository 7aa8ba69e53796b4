"""The `unimodal` command: from tokenizing to a report page."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from unimodal.commands.process import prepare
from unimodal.generation.options import add_arguments as add_settings
from unimodal.generation.options import add_drafts
from unimodal.generation.settings import OPTIONS

Handler = Callable[[argparse.Namespace], int]
EVALUATED = tuple(name for name in OPTIONS if name not in ("mode", "constrained"))
"""Settings of `unimodal evaluate`; a task has its own mode, and draws with rules and without."""

RESUMES = {"tokenize": "; the same command resumes where it stopped"}
"""What an interrupted command adds to the line that says so."""


class CommandParser(argparse.ArgumentParser):
    """A mistake is answered with one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _tokenize_arguments(parser: argparse.ArgumentParser) -> None:
    _source_arguments(parser, split="train")
    parser.add_argument("--image-tokenizer", type=Path, required=True, metavar="DIR", help="a trained image tokenizer")
    _device_argument(parser)
    about = "an autoencoder, whose latents the flow branch trains on; they lie beside the codes"
    parser.add_argument("--autoencoder", type=Path, metavar="DIR", help=about)
    about = "keep patches of so many pixels for a ViT, of pictures in their own shape"
    parser.add_argument("--patch", type=int, metavar="PIXELS", help=about)
    about = "maximum of a picture; larger ones shrink (64)"
    parser.add_argument("--max-patches", "--most-patches", type=int, metavar="N", help=about)
    parser.add_argument("--text-tokenizer", type=Path, metavar="PATH", help="a tokenizer.json; trained here if absent")
    parser.add_argument("--text-vocabulary", type=int, default=1024, metavar="N", help="most ids of a trained one")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the shards go")
    parser.add_argument("--copies", type=int, default=1, help="copies of each document; all but the first augmented")
    parser.add_argument("--augment", default="", help="flip, place or flip,place")
    about = "longest ratio of an image's sides; more than 1 gives images of several sizes, in a grid layout"
    parser.add_argument("--aspect-ratio", type=float, default=1.0, metavar="R", help=about)
    parser.add_argument("--documents-per-shard", type=int, default=1000, metavar="N")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="threads that read pictures")
    about = "pictures that are encoded together (256); fewer take less memory"
    parser.add_argument("--images-at-once", type=int, default=256, metavar="N", help=about)
    ranks = {"type": int, "metavar": "N"}
    parser.add_argument("--rank", default=os.environ.get("RANK", "0"), help="which share of the shards", **ranks)
    parser.add_argument("--world-size", default=os.environ.get("WORLD_SIZE", "1"), help="of how many", **ranks)
    parser.add_argument("--seed", type=int, default=0)


def _tokenize(options: argparse.Namespace) -> int:
    from unimodal.commands.tokenize import run

    return run(options)


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a folder of shards or a model bundle")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that shows documents of the shards")
    parser.add_argument("--documents", type=int, default=24, metavar="N", help="how many, spread over the shards")


def _inspect(options: argparse.Namespace) -> int:
    from unimodal.commands.inspect import run

    return run(options.path, options.html, options.documents)


def _bundle_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of train.py, of any number of ranks")
    about = "shards or a bundle, beside which the run's tokenizers lie"
    parser.add_argument("--tokenizers", type=Path, required=True, metavar="DIR", help=about)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the bundle goes")


def _bundle(options: argparse.Namespace) -> int:
    from unimodal.commands.bundle import run

    return run(options.checkpoint, options.tokenizers, options.out)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a config of train.py fit")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="devices, one rank each")
    parser.add_argument("--memory", type=float, default=80.0, metavar="GIB", help="of one device")
    parser.add_argument("--vocab-size", type=int, default=65536, metavar="N", help="text ids and image codes")
    parser.add_argument("--rows", type=int, metavar="N", help="of a rank's batch, instead of the config's")


def _plan(options: argparse.Namespace) -> int:
    from unimodal.commands.plan import run

    return run(options.config, options.gpus, options.memory, options.vocab_size, options.rows)


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a folder under RUN/skipped")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a bundle, where the folder holds no weights")


def _replay(options: argparse.Namespace) -> int:
    from unimodal.commands.replay import run

    return run(options.path, options.model)


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model bundle")
    parser.add_argument("--prompt", default="", help="text; it follows the images")
    parser.add_argument("--image", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where pictures and answer.txt go")
    parser.add_argument("--number", type=int, default=1, metavar="N", help="answers, with seeds SEED, SEED+1, ...")
    add_settings(parser)
    rules = parser.add_mutually_exclusive_group()
    about = 'the answer is JSON under this schema; {"type": "image"} is a place for a picture'
    rules.add_argument("--json-schema", type=Path, default=None, metavar="FILE", help=about)
    rules.add_argument("--choices", nargs="+", default=None, metavar="ANSWER", help="the answer is one of these")
    rules.add_argument("--regex", default=None, metavar="PATTERN", help="the answer matches this regular expression")
    _device_arguments(parser)
    about = "compile the decoding steps: takes half a minute or two, for long answers of large models"
    parser.add_argument("--compile", action="store_true", help=about)
    add_drafts(parser)
    parser.add_argument("--stream", action="store_true", help="print the answer as it comes; for a single one")
    parser.add_argument("--think", action="store_true", help="plan in words before the picture; with --mode image")
    parser.add_argument("--seed", type=int, default=0)


def _device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default=None, help="cpu, cuda or cuda:1; CUDA's first one where there is one")


def _device_arguments(parser: argparse.ArgumentParser) -> None:
    _device_argument(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None, help="of the weights while decoding")


def _generate(options: argparse.Namespace) -> int:
    from unimodal.commands.generate import run

    return run(options)


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _source_arguments(parser, split="test")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model bundle")
    parser.add_argument("--task", required=True, help="vqa, caption, t2i, edit or reconstruction")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the results file")
    _device_arguments(parser)
    add_drafts(parser)
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="only the first N items")
    parser.add_argument("--seed", type=int, default=None)
    add_settings(parser, EVALUATED, defaults=False)
    parser.add_argument("--choices", nargs="+", default=None, metavar="ANSWER", help="vqa: answers that may be given")
    parser.add_argument("--seeds-per-prompt", type=int, default=None, metavar="N", help="for drawing")


def _evaluate(options: argparse.Namespace) -> int:
    from unimodal.commands.evaluate import run

    return run(options)


def _import_hf_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="a local Llama, Qwen2, Qwen3 or Chameleon")
    parser.add_argument("out", type=Path, metavar="DST", help="where the model bundle goes")
    about = "an image tokenizer whose codes the model is to learn; not for an export of ours"
    parser.add_argument("--image-tokenizer", type=Path, default=None, metavar="DIR", help=about)


def _import_hf(options: argparse.Namespace) -> int:
    from unimodal.commands.import_hf import run

    return run(options.source, options.out, options.image_tokenizer)


def _export_hf_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="a model bundle")
    parser.add_argument("out", type=Path, metavar="DST", help="where the folder for transformers goes")


def _export_hf(options: argparse.Namespace) -> int:
    from unimodal.commands.export_hf import run

    return run(options.source, options.out)


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    about = "discrete draws code by code, flow draws latents and edits, which takes longer"
    parser.add_argument("--branch", default="discrete", help=about)
    about = "train for as many steps as fit into this time; without it all steps, chosen for the machine"
    parser.add_argument("--minutes", type=float, default=None, metavar="N", help=about)
    about = "then train its drawings by reinforcement learning; a demo that is there already is continued"
    parser.add_argument("--rl", action="store_true", help=about)


def _demo(options: argparse.Namespace) -> int:
    from unimodal.demo.reinforce import run_with_rl
    from unimodal.demo.tour import run
    from unimodal.training.cli import main as train

    act, programs = run_with_rl if options.rl else run, {"train.py": train, "unimodal": main}
    act(options.out, programs, quick=options.quick, branch=options.branch, minutes=options.minutes)
    return 0


def _option(text: str) -> tuple[str, Any]:
    """`dialogues=400` -> ("dialogues", 400); a value is JSON where it can be, else a string."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"an option is NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _source_arguments(parser: argparse.ArgumentParser, split: str) -> None:
    names = "easy_vqa, imagefolder, coco, vqav2, webdataset, text, interleaved, hf or noto_emoji"
    parser.add_argument("--source", required=True, metavar="NAME", help=names)
    parser.add_argument("--path", type=Path, default=None, metavar="P", help="where the source's data lies")
    parser.add_argument("--split", default=split, metavar="S")
    about = "an option of the source, as docs/formats.md names them; may be given again"
    parser.add_argument("--option", type=_option, action="append", default=[], metavar="NAME=VALUE", help=about)
    parser.add_argument(
        "--max-bad", type=float, default=0.1, metavar="SHARE", help="stop past this share of bad samples"
    )


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    about = "the folder of a training (trainer.default_root_dir), with results of `unimodal evaluate` in it"
    parser.add_argument("run", type=Path, metavar="RUN", help=about)


def _report(options: argparse.Namespace) -> int:
    from unimodal.report import write_report
    from unimodal.terminal import say

    say(f"open {write_report(options.run)}")
    return 0


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Handler]] = {
    "tokenize": ("documents of a source become token shards", _tokenize_arguments, _tokenize),
    "inspect": ("verify shards or a bundle and print what they hold", _inspect_arguments, _inspect),
    "generate": ("text and pictures from text and pictures", _generate_arguments, _generate),
    "evaluate": ("score a model on a task", _evaluate_arguments, _evaluate),
    "report": ("curves, pictures, answers and scores of a run on one page", _report_arguments, _report),
    "import-hf": ("a local Llama, Qwen2, Qwen3 or Chameleon becomes a model bundle", _import_hf_arguments, _import_hf),
    "export-hf": ("a model bundle becomes a folder for transformers", _export_hf_arguments, _export_hf),
    "bundle": ("a model bundle of a checkpoint, however many ranks wrote it", _bundle_arguments, _bundle),
    "plan": ("what a run needs of memory on so many devices, and which setting to take", _plan_arguments, _plan),
    "replay": ("name the first module that went wrong in a skipped step", _replay_arguments, _replay),
    "demo": ("train, draw, answer and score on easy-VQA; ends with a report page", _demo_arguments, _demo),
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = CommandParser(prog="unimodal", description="Any-to-any image and text models on discrete tokens.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=CommandParser)
    for name, (summary, add_arguments, handler) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        add_arguments(command)
        command.set_defaults(handler=handler)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. What a user did wrong becomes one line on stderr and exit code 2."""
    options = build_parser().parse_args(arguments)
    prepare(signals=arguments is None)
    try:
        code = options.handler(options)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt as stopped:
        print(f"unimodal {options.command}: interrupted{RESUMES.get(options.command, '')}", file=sys.stderr)
        code = 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
    except (ValueError, OSError) as error:
        print(f"unimodal {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    if arguments is None:
        raise SystemExit(code)
    return code
