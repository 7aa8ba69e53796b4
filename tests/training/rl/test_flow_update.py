"""Pictures that a flow drew: their noisy steps come out of packed rows with the probability they were drawn with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_pipelines.batch import PackedBatch
from tests.oracles.pictures import noise
from tests.oracles.tiny import tiny_flow_pipeline
from tests.oracles.tiny_rl import rl_arguments, tiny_prompts
from tests.oracles.tiny_training import finish, logged, start_training
from unimodal.generation.answer_rows import SampledAnswer
from unimodal.generation.batch_media import media_tokens
from unimodal.generation.pipeline import Pipeline
from unimodal.generation.stochastic_flow import NoiseWindow, StepTime, log_prob, step_mean
from unimodal.model.branches.base import Branch, MediaBatch
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.training.cli import main, run
from unimodal.training.rl.updates.flow import FlowBatch, FlowPacker, flow_velocities

PROMPTS = ["a red circle", [noise(16, 16, seed=1), "make it blue"], "a"]
SETTINGS = {"mode": "image", "guidance": 1.0, "steps": 5, "noise": 0.7, "shift": 2.0}


def features(model: UnifiedModel, packed: PackedBatch, media: MediaBatch) -> Tensor:
    mask = dense_mask(packed.documents, packed.branches, packed.spans)
    return model(packed.tokens, packed.positions, mask, media=media)


def media_of(model: UnifiedModel, packed: PackedBatch) -> MediaBatch:
    media = {name: media_tokens(each) for name, each in packed.media.items()}
    for name, branch in model.branches.items():
        assert isinstance(branch, Branch)
        media.setdefault(name, branch.empty(torch.zeros((), dtype=model.dtype)))
    return media


def sampled(pipeline: Pipeline, group: int = 3, count: int = 3) -> list[SampledAnswer]:
    config = pipeline.decode_config(**SETTINGS)
    requests = [
        replace(request, seed=10 * number + member, window=NoiseWindow(number, number % 2, count))
        for number, request in enumerate(pipeline.requests(PROMPTS, config))
        for member in range(group)
    ]
    answers = pipeline.engine.decode(requests)
    return [
        SampledAnswer(
            request=request,
            ids=answer.ids,
            log_probs=answer.log_probs,
            steps=tuple(step for path in answer.steps for step in path),
            group=number // group,
        )
        for number, (request, answer) in enumerate(zip(requests, answers, strict=True))
    ]


def batches(pipeline: Pipeline, trajectories: list[SampledAnswer]) -> list[FlowBatch]:
    packer = FlowPacker(pipeline.token_space, pipeline.reading, (2, 2), rows=3, length=40)
    return list(packer.batches(trajectories, range(len(trajectories))))


def log_probs(pipeline: Pipeline, batch: FlowBatch, times: Tensor | None = None) -> Tensor:
    velocities = flow_velocities(partial(media_of, pipeline.model), features)
    asked = batch if times is None else replace(batch, at=batch.at._replace(time=times))
    velocity = velocities(pipeline.model, asked)
    at = StepTime(*(each[:, None, None].to(velocity.dtype) for each in batch.at))
    mean = step_mean(batch.before.to(velocity.dtype), velocity, at)
    return log_prob(batch.after.to(velocity.dtype), mean, at.deviation)


@pytest.mark.parametrize("mixture", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_stored_log_probabilities_come_out_of_packed_rows_again(
    mixture: bool, dtype: torch.dtype, tolerance: float
) -> None:
    pipeline = tiny_flow_pipeline(mixture=mixture)
    pipeline.model.to(dtype)
    trajectories = sampled(pipeline)
    assert all(len(each.steps) == 3 for each in trajectories)
    found = batches(pipeline, trajectories)
    assert len(found) > 1
    assert sorted(len(batch.numbers) for batch in found)[-1] > 1
    assert sum(len(batch.old) for batch in found) == sum(len(each.steps) for each in trajectories)
    for batch in found:
        difference = (log_probs(pipeline, batch).double() - batch.old).abs().max()
        assert difference < tolerance, difference


def test_pictures_of_a_group_begin_with_the_same_noise_and_differ_by_the_noise_of_their_steps() -> None:
    trajectories = sampled(tiny_flow_pipeline())
    for group in range(len(PROMPTS)):
        members = [each.steps for each in trajectories if each.group == group]
        assert len({tuple(step.at for step in steps) for steps in members}) == 1
        torch.testing.assert_close(members[1][0].before, members[0][0].before, rtol=1e-5, atol=1e-5)
        assert (members[1][0].after - members[0][0].after).abs().max() > 0.05
    others = [next(each for each in trajectories if each.group == group).steps[0].before for group in (0, 2)]
    assert (others[0] - others[1]).abs().max() > 0.05


def test_an_empty_batch_is_a_pass_through_every_weight() -> None:
    pipeline = tiny_flow_pipeline()
    model = pipeline.model.requires_grad_(True)
    packer = FlowPacker(pipeline.token_space, pipeline.reading, (2, 2), rows=3, length=40)
    empty = packer.empty(batches(pipeline, sampled(pipeline))[0])
    found = log_probs(pipeline, empty)
    assert found.shape == (0,)
    found.sum().backward()
    missing = [name for name, each in model.named_parameters() if each.grad is None]
    assert not missing and all(not each.grad.any() for each in model.parameters() if each.grad is not None)


def test_a_step_at_another_time_has_another_probability() -> None:
    pipeline = tiny_flow_pipeline()
    [batch, *_] = batches(pipeline, sampled(pipeline))
    found = log_probs(pipeline, batch, batch.at.time.roll(1))
    assert (found.double() - batch.old).abs().max() > 1e-3


def flow_arguments(folder: Path, root: Path, **options: str | float) -> list[str]:
    if not (folder / "bundle").exists():
        folder.mkdir(parents=True)
        tiny_flow_pipeline().bundle.save(folder / "bundle")
    prompts = tiny_file(folder)
    decode = "{mode: image, guidance: 1.0, steps: 5, noise: 0.7}"
    settings: dict[str, str | float] = {
        "data.prompts": f"[{{class_path: FilePrompts, init_args: {{path: {prompts}, rewards: {{red: 1.0}}, "
        f"decode: {decode}}}}}]",
        "model.rollouts": "{prompts: 4, group: 4, rows: 4, length: 64, mini_batches: 2, flow_steps: 2}",
        "model.loss": "ClippedRatio",
        "model.loss.low": 0.05,
        "model.loss.high": 0.05,
        "model.kl": "{image: 0.01}",
        "trainer.max_steps": 8,
        **options,
    }
    return rl_arguments(folder, root, **settings)


def tiny_file(folder: Path) -> Path:
    return tiny_prompts(folder / "prompts.jsonl")


def test_pictures_of_a_flow_become_redder(tmp_path: Path) -> None:
    cli = run(flow_arguments(tmp_path / "data", tmp_path / "run", trainer__max_steps=40))
    rewards = [float(value) for value in logged(tmp_path / "run", "train/reward").values()]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:3]) / 3 + 0.02
    gaps = [float(value) for value in logged(tmp_path / "run", "train/log_prob_gap").values()]
    assert max(gaps) < 1e-5 and cli.trainer.callback_metrics["train/kl_image"] > 0


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_learn_a_flow_as_one_does(tmp_path: Path) -> None:
    options: dict[str, str | float] = {"trainer.precision": "64-true", "trainer.max_steps": 6}
    two: dict[str, str | float] = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    for name, chosen in {"one": options, "two": {**options, **two}}.items():
        output = finish(process := start_training(flow_arguments(tmp_path / "data", tmp_path / name, **chosen)), 240)
        assert process.returncode == 0, output
    for name in ("train/reward", "train/loss", "train/grad_norm", "train/kl_image"):
        alone, together = (logged(tmp_path / folder, name) for folder in ("one", "two"))
        assert alone.keys() == together.keys() and alone
        for step in alone:
            assert float(together[step]) == pytest.approx(float(alone[step]), rel=1e-10, abs=1e-12), (name, step)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data.prompts": "{decode: {mode: image, steps: 5}}"}, "set decode.noise"),
        ({"data.prompts": "{decode: {mode: image, noise: 0.7, guidance: 2.0}}"}, "without guidance"),
        ({"data.prompts": "{decode: {mode: mixed, noise: 0.7}}"}, "pictures alone or words alone"),
        ({"model.entropy": 0.1}, "leave out value and entropy"),
    ],
)
def test_what_a_flow_cannot_learn_is_refused_in_one_line(
    options: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flow_arguments(tmp_path / "data", tmp_path / "run")
    path = tmp_path / "data" / "prompts.jsonl"
    for name, value in options.items():
        if name == "data.prompts":
            decode = value.removeprefix("{decode: ").removesuffix("}")
            value = (
                f"[{{class_path: FilePrompts, init_args: {{path: {path}, rewards: {{red: 1.0}}, decode: {decode}}}}}]"
            )
        arguments = [each for each in arguments if not each.startswith(f"--{name}=")] + [f"--{name}={value}"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error and "Traceback" not in error
