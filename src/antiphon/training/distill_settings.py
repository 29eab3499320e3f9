"""Settings of distillation; light, so that the command line can read them quickly."""

from __future__ import annotations

from pydantic import Field, model_validator

from antiphon.config import Strict


class DistillConfig(Strict):
    """Which of the pool's answers are learned."""

    min_score: float | None = Field(
        None, allow_inf_nan=False, description="learn answers that score at least so much"
    )
    keep_best: float | None = Field(
        None,
        gt=0,
        le=1,
        description="learn this share of the answers: the best ones, of equals the first",
    )
    keep_cut: bool = Field(
        False,
        description="learn also answers that were cut by max_new_tokens or a full context; "
        "without an end token",
    )

    @model_validator(mode="after")
    def _one_filter(self) -> DistillConfig:
        if self.min_score is not None and self.keep_best is not None:
            raise ValueError("`min_score` and `keep_best` are two filters; give one")
        return self
