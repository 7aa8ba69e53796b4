"""Visual question answering: accuracy, by type of answer, beside a run that cannot see and one that only counts."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from unimodal.evaluation.metrics.answers import normalise_answer
from unimodal.evaluation.metrics.vqa import AnswerScore, normalise_vqav2, vqa_score, vqav2_score
from unimodal.evaluation.samples import Question, Sample, answerable, read_samples
from unimodal.generation.grammars import Choices

MAX_NEW_TOKENS = 8
NUM_EXAMPLES = 24
QUESTION_OFTEN = 5
"""Asked this often on average, a question has an answer of its own that is commonest."""
YES_NO = frozenset({"yes", "no"})
EASY_VQA_TYPES: Mapping[str, frozenset[str]] = {"colour": frozenset(COLOURS), "shape": frozenset(SHAPES)}

Item = tuple[Sample, Question]


@dataclass(frozen=True, kw_only=True)
class AnswerScoring:
    """How answers are compared: the score, the spelling that tells which are alike, and its name in results.

    `types`: type of answer -> its answers, beyond yes_no, number and other.
    """

    score: AnswerScore = vqa_score
    normalise: Callable[[str], str] = normalise_answer
    normaliser: str = "case, spelling and sentence marks; nothing that tells answers apart"
    types: Mapping[str, frozenset[str]] = field(default_factory=dict)


EASY_VQA = AnswerScoring(types=EASY_VQA_TYPES)
VQAV2 = AnswerScoring(score=vqav2_score, normalise=normalise_vqav2, normaliser="official VQAv2 evaluation")


def evaluate(
    model: AnyToAnyModel,
    source: DocumentSource,
    *,
    sampling: Sampling = GREEDY,
    limit: int | None = None,
    batch_size: int = 256,
    scoring: AnswerScoring = AnswerScoring(),
    choices: Sequence[str] | None = None,
    reporter: Reporter = silent,
) -> TaskResult:
    """Ask every question of the first `limit` pictures.

    The blind run replaces every picture by the mean of the evaluated ones of its size; majority_accuracy answers each
    type with that split's commonest answer, and question_prior_accuracy, where questions recur, each question: what a
    model that cannot see may reach at best. With `choices` the model can give no other answer. A question without an
    answer that can be compared, or too long for the model, is skipped by name. Raises ValueError without questions.
    """
    start = time.perf_counter()
    codec_of(model)
    max_new_tokens = sampling.max_new_tokens or MAX_NEW_TOKENS
    settings = sampling.to_dict() | {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    settings |= {"grammar": Choices(choices)} if choices is not None else {}
    items = _items(model, source, limit, settings)
    prompts = [[sample.image, question.text] for sample, question in items]
    answers = _answers(model.generate(prompts, "text", progress=reporter("questions", len(items)), **settings))
    blind = _blind_answers(model, items, settings, reporter)
    metrics = _metrics(items, answers, blind, scoring)
    recipe = sampling.recipe() | {
        "max_new_tokens": max_new_tokens,
        "prompt_template": "image, question",
        "preprocessing": "border-pad to the model's image size",
        "normaliser": scoring.normaliser,
        "choices": None if choices is None else list(choices),
        "blind_image": "mean picture of the evaluated ones of that size",
    }
    seconds = time.perf_counter() - start
    examples = _examples(items, answers, scoring)
    return TaskResult(task="vqa", metrics=metrics, n=len(items), seconds=seconds, recipe=recipe, examples=examples)


def answer_type(answer: str, scoring: AnswerScoring) -> str:
    """yes_no, a type of `scoring.types`, number or other."""
    normalised = scoring.normalise(answer)
    if normalised in YES_NO:
        return "yes_no"
    for name, members in scoring.types.items():
        if normalised in members:
            return name
    return "number" if re.fullmatch(r"\d+([.,]\d+)*", normalised) else "other"


def mean_picture(images: Sequence[Image.Image]) -> Image.Image:
    """The pixelwise mean of pictures of one size."""
    total = torch.zeros_like(to_tensor(images[0]))
    for image in images:
        total += to_tensor(image)
    return to_image(total / len(images))


def _items(model: AnyToAnyModel, source: DocumentSource, limit: int | None, settings: dict) -> list[Item]:
    """Questions with an answer, those skipped by name that cannot be asked or scored."""
    found: list[Item] = []
    for sample in read_samples(source, model, limit=limit):
        for question in sample.questions:
            if any(answer.strip() for answer in question.answers):
                found.append((sample, question))
            else:
                source.failures.revoke(f"{sample.key}, {question.text!r}", "no answer to compare with")
    names = [f"{sample.key}, {question.text[:60]!r}" for sample, question in found]
    prompts = [[sample.image, question.text] for sample, question in found]
    items = [found[number] for number in answerable(model, source, names, prompts, "text", settings)]
    if not items:
        raise ValueError("the source has no questions with answers: vqa has nothing to ask")
    return items


def _answers(outputs: Sequence[Sequence[str | Image.Image]]) -> list[str]:
    return ["".join(part for part in parts if isinstance(part, str)).strip() for parts in outputs]


def _blind_answers(model: AnyToAnyModel, items: Sequence[Item], settings: dict, reporter: Reporter) -> list[str]:
    """Answers to the same questions beside the mean picture of the size; the same question is asked once a size."""
    pictures = {sample.key: sample.image for sample, _ in items}
    sizes = dict.fromkeys(image.size for image in pictures.values())
    means = {size: mean_picture([image for image in pictures.values() if image.size == size]) for size in sizes}
    asked = list(dict.fromkeys((sample.image.size, question.text) for sample, question in items))
    prompts = [[means[size], question] for size, question in asked]
    outputs = model.generate(prompts, "text", progress=reporter("questions, blind", len(prompts)), **settings)
    answers = dict(zip(asked, _answers(outputs), strict=True))
    return [answers[sample.image.size, question.text] for sample, question in items]


def _consensus(question: Question, scoring: AnswerScoring) -> str:
    """The commonest answer, as it was first written; of two as common, the first."""
    written: dict[str, str] = {}
    for answer in question.answers:
        written.setdefault(scoring.normalise(answer), answer)
    return written[Counter(map(scoring.normalise, question.answers)).most_common(1)[0][0]]


def _metrics(
    items: Sequence[Item], answers: Sequence[str], blind: Sequence[str], scoring: AnswerScoring
) -> dict[str, float]:
    questions = [question for _, question in items]
    types = [answer_type(_consensus(question, scoring), scoring) for question in questions]
    references = [question.answers for question in questions]
    scores = [scoring.score(answer, given) for answer, given in zip(answers, references, strict=True)]
    blind_scores = [scoring.score(answer, given) for answer, given in zip(blind, references, strict=True)]
    by_type: defaultdict[str, list[float]] = defaultdict(list)
    for kind, score in zip(types, scores, strict=True):
        by_type[kind].append(score)
    metrics = {"accuracy": fmean(scores), "image_blind_accuracy": fmean(blind_scores)}
    metrics["majority_accuracy"] = _majority_accuracy(questions, types, scoring)
    texts = [question.text for question in questions]
    if len(texts) >= QUESTION_OFTEN * len(set(texts)):
        metrics["question_prior_accuracy"] = _majority_accuracy(questions, texts, scoring)
    return metrics | {f"accuracy_{kind}": fmean(by_type[kind]) for kind in sorted(by_type)}


def _majority_accuracy(questions: Sequence[Question], groups: Sequence[str], scoring: AnswerScoring) -> float:
    """Score of always giving the commonest answer of the question's group."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group, question in zip(groups, questions, strict=True):
        counts[group][_consensus(question, scoring)] += 1
    commonest = {group: answers.most_common(1)[0][0] for group, answers in counts.items()}
    return fmean(scoring.score(commonest[group], q.answers) for group, q in zip(groups, questions, strict=True))


def _examples(items: Sequence[Item], answers: Sequence[str], scoring: AnswerScoring) -> list[Example]:
    """Questions spread evenly over the split, for the report."""
    step = max(1, len(items) // NUM_EXAMPLES)
    return [
        Example(
            prompt=question.text,
            answer=answer,
            reference=_consensus(question, scoring),
            right=scoring.score(answer, question.answers) >= 0.5,
            images={"shown": sample.image},
        )
        for (sample, question), answer in list(zip(items, answers, strict=True))[::step][:NUM_EXAMPLES]
    ]
