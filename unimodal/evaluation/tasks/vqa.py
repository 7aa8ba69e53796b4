"""Visual question answering: accuracy, by type of answer, beside a run that cannot see and one that only counts."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from PIL import Image

from data_pipelines.images import to_image, to_tensor
from data_pipelines.sources.easy_vqa import COLOURS, SHAPES
from unimodal.evaluation.contract import (
    GREEDY,
    AnyToAnyModel,
    DocumentSource,
    Example,
    Reporter,
    Sampling,
    TaskResult,
    codec_of,
    silent,
)
from unimodal.evaluation.metrics.vqa import normalise_answer, vqa_score
from unimodal.evaluation.samples import Question, Sample, read_samples
from unimodal.generation.grammars import Choices

MAX_NEW_TOKENS = 8
NUM_EXAMPLES = 24
QUESTION_OFTEN = 5
"""Asked this often on average, a question has an answer of its own that is commonest."""
YES_NO = frozenset({"yes", "no"})
EASY_VQA_TYPES: Mapping[str, frozenset[str]] = {"colour": frozenset(COLOURS), "shape": frozenset(SHAPES)}

Item = tuple[Sample, Question]


def evaluate(
    model: AnyToAnyModel,
    source: DocumentSource,
    *,
    sampling: Sampling = GREEDY,
    limit: int | None = None,
    batch_size: int = 256,
    answer_types: Mapping[str, frozenset[str]] | None = None,
    choices: Sequence[str] | None = None,
    reporter: Reporter = silent,
) -> TaskResult:
    """Ask every question of the first `limit` pictures.

    `answer_types`: type -> its answers, beyond yes_no, number and other. The blind run replaces every picture by the
    mean picture of the evaluated ones; majority_accuracy answers each type with that split's own commonest answer,
    and question_prior_accuracy, where questions recur, each question: what a model that cannot see may reach at best.
    With `choices` the model can give no other answer. Raises ValueError when the source has no questions.
    """
    start = time.perf_counter()
    codec_of(model)
    items = [(sample, question) for sample in read_samples(source, model, limit=limit) for question in sample.questions]
    if not items:
        raise ValueError("the source has no questions with answers: vqa has nothing to ask")
    max_new_tokens = sampling.max_new_tokens or MAX_NEW_TOKENS
    settings = sampling.to_dict() | {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    settings |= {"grammar": Choices(choices)} if choices is not None else {}
    prompts = [[sample.image, question.text] for sample, question in items]
    answers = _answers(model.generate(prompts, "text", progress=reporter("questions", len(items)), **settings))
    blind = _blind_answers(model, items, settings, reporter)
    types = [answer_type(_consensus(question), answer_types or {}) for _, question in items]
    metrics = _metrics(items, answers, blind, types)
    recipe = sampling.recipe() | {
        "max_new_tokens": max_new_tokens,
        "prompt_template": "image, question",
        "preprocessing": "border-pad to the model's image size",
        "normaliser": "VQA evaluation",
        "choices": None if choices is None else list(choices),
        "blind_image": "mean picture of the evaluated ones",
    }
    seconds = time.perf_counter() - start
    examples = _examples(items, answers)
    return TaskResult(task="vqa", metrics=metrics, n=len(items), seconds=seconds, recipe=recipe, examples=examples)


def answer_type(answer: str, answer_types: Mapping[str, frozenset[str]]) -> str:
    """yes_no, a type of `answer_types`, number or other."""
    normalised = normalise_answer(answer)
    if normalised in YES_NO:
        return "yes_no"
    for name, members in answer_types.items():
        if normalised in members:
            return name
    return "number" if re.fullmatch(r"\d+([.,]\d+)*", normalised) else "other"


def mean_picture(images: Sequence[Image.Image]) -> Image.Image:
    """The pixelwise mean of pictures of one size."""
    total = torch.zeros_like(to_tensor(images[0]))
    for image in images:
        total += to_tensor(image)
    return to_image(total / len(images))


def _answers(outputs: Sequence[Sequence[str | Image.Image]]) -> list[str]:
    return ["".join(part for part in parts if isinstance(part, str)).strip() for parts in outputs]


def _blind_answers(model: AnyToAnyModel, items: Sequence[Item], settings: dict, reporter: Reporter) -> list[str]:
    """Answers to the same questions beside the mean picture; the same question is asked once."""
    pictures = {sample.key: sample.image for sample, _ in items}
    mean = mean_picture(list(pictures.values()))
    questions = list(dict.fromkeys(question.text for _, question in items))
    prompts = [[mean, question] for question in questions]
    outputs = model.generate(prompts, "text", progress=reporter("questions, blind", len(prompts)), **settings)
    answers = dict(zip(questions, _answers(outputs), strict=True))
    return [answers[question.text] for _, question in items]


def _consensus(question: Question) -> str:
    """The commonest answer; of two as common, the first."""
    return Counter(map(normalise_answer, question.answers)).most_common(1)[0][0]


def _metrics(
    items: Sequence[Item], answers: Sequence[str], blind: Sequence[str], types: Sequence[str]
) -> dict[str, float]:
    scores = [vqa_score(answer, question.answers) for answer, (_, question) in zip(answers, items, strict=True)]
    blind_scores = [vqa_score(answer, question.answers) for answer, (_, question) in zip(blind, items, strict=True)]
    by_type: defaultdict[str, list[float]] = defaultdict(list)
    for kind, score in zip(types, scores, strict=True):
        by_type[kind].append(score)
    metrics = {"accuracy": fmean(scores), "image_blind_accuracy": fmean(blind_scores)}
    questions = [question for _, question in items]
    metrics["majority_accuracy"] = _majority_accuracy(questions, types)
    texts = [question.text for question in questions]
    if len(texts) >= QUESTION_OFTEN * len(set(texts)):
        metrics["question_prior_accuracy"] = _majority_accuracy(questions, texts)
    return metrics | {f"accuracy_{kind}": fmean(by_type[kind]) for kind in sorted(by_type)}


def _majority_accuracy(questions: Sequence[Question], groups: Sequence[str]) -> float:
    """Score of always giving the commonest answer of the question's group."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group, question in zip(groups, questions, strict=True):
        counts[group][_consensus(question)] += 1
    commonest = {group: answers.most_common(1)[0][0] for group, answers in counts.items()}
    return fmean(vqa_score(commonest[group], q.answers) for group, q in zip(groups, questions, strict=True))


def _examples(items: Sequence[Item], answers: Sequence[str]) -> list[Example]:
    """Questions spread evenly over the split, for the report."""
    step = max(1, len(items) // NUM_EXAMPLES)
    return [
        Example(
            prompt=question.text,
            answer=answer,
            reference=_consensus(question),
            right=vqa_score(answer, question.answers) >= 0.5,
            images={"shown": sample.image},
        )
        for (sample, question), answer in list(zip(items, answers, strict=True))[::step][:NUM_EXAMPLES]
    ]
