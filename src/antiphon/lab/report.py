"""Examine the three checkpoints alone: accuracy per skill, with 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from antiphon.lab.build import Lab
from antiphon.lab.world import SKILLS, Question, score

_MAX_NEW_TOKENS = 28  # the longest right answer has 24 tokens and an end
_BATCH = 100


@dataclass(frozen=True)
class Accuracy:
    """How one checkpoint does on one skill.

    Attributes:
        checkpoint: ``"P"``, ``"F"`` or ``"A"``.
        skill: one of :data:`antiphon.lab.world.SKILLS`.
        questions: how many test questions were asked.
        accuracy: share with the right final answer, in [0, 1].
        low, high: 95 % Wilson interval of the accuracy.
    """

    checkpoint: str
    skill: str
    questions: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class LabReport:
    """Accuracy of every checkpoint on every skill, rows in order of the pipeline."""

    rows: tuple[Accuracy, ...]

    def accuracy(self, checkpoint: str, skill: str) -> Accuracy:
        """The row of one checkpoint and one skill."""
        return next(r for r in self.rows if (r.checkpoint, r.skill) == (checkpoint, skill))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data: ``{"rows": [{"checkpoint": "P", ...}, ...]}``."""
        return {"rows": [asdict(row) for row in self.rows]}


def report(lab: Lab, *, questions_per_skill: int = 200) -> LabReport:
    """Ask every checkpoint the same test questions, one greedy answer each.

    F and A are asked in their chat template. P completes text: it gets the question as plain text
    and, where there is one, the question's ``lead`` (``QZB=``), as base models are examined
    elsewhere. ``both`` has no lead.

    Args:
        lab: a finished lab.
        questions_per_skill: test questions a skill; fewer are asked if fewer exist.
    """
    rows: list[Accuracy] = []
    for checkpoint, path in lab.paths.items():
        model = AutoModelForCausalLM.from_pretrained(path).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        for skill in SKILLS:
            questions = lab.world.questions(skill, "test", questions_per_skill)
            right = 0.0
            for start in range(0, len(questions), _BATCH):
                part = questions[start : start + _BATCH]
                answers = _answer(model, tokenizer, part)
                right += sum(map(score, part, answers))
            low, high = wilson_interval(right, len(questions))
            rows.append(
                Accuracy(checkpoint, skill, len(questions), right / len(questions), low, high)
            )
    return LabReport(tuple(rows))


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share; unlike the normal one it is sound near 0 and 1."""
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


@torch.inference_mode()
def _answer(model: Any, tokenizer: Any, questions: list[Question]) -> list[str]:
    """One greedy answer to each question, including the lead that was given."""
    chat = tokenizer.chat_template is not None
    leads = ["" if chat else question.lead for question in questions]
    prompts = [
        tokenizer.apply_chat_template(q.messages, add_generation_prompt=True, tokenize=False)
        if chat
        else q.plain + lead
        for q, lead in zip(questions, leads, strict=True)
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    output = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=_MAX_NEW_TOKENS,
        do_sample=False,
    )
    new = output[:, inputs.input_ids.shape[1] :]
    texts: list[str] = tokenizer.batch_decode(new, skip_special_tokens=True)
    return [lead + text for lead, text in zip(leads, texts, strict=True)]
