"""A laptop-sized world in which the checkpoints of one training pipeline differ in skill."""

from antiphon.lab.build import Lab, build_lab, load_lab
from antiphon.lab.report import LabReport, report
from antiphon.lab.world import SKILLS, SPLITS, Question, World, partial_score, score

__all__ = [
    "SKILLS",
    "SPLITS",
    "Lab",
    "LabReport",
    "Question",
    "World",
    "build_lab",
    "load_lab",
    "partial_score",
    "report",
    "score",
]
