"""Settings of switcher training; light, so that the command line can read them quickly."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from antiphon.config import Strict


class LabelConfig(Strict):
    """What a switcher is taught of an instance."""

    labels: Literal["hard", "soft"] = Field(
        "hard", description="the best candidate, or all weighted by utility"
    )
    ties: Literal["soft", "keep", "drop"] = Field(
        "soft", description="near-tied best: share the label, keep the first's, drop the instance"
    )
    tolerance: float = Field(
        0.02, ge=0, description="utilities closer than this share of the score's range are tied"
    )
    temperature: float = Field(
        0.1, gt=0, description="of soft labels, as a share of the score's range"
    )
    instances: int | None = Field(
        None, ge=1, description="use the first so many instances of each store"
    )
    completions: int | None = Field(
        None, ge=1, description="use the first so many completions of each branch"
    )


class HeadConfig(Strict):
    """How a hidden-state switcher's head is trained."""

    hidden: int = Field(64, ge=1, description="width of the head")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW")
    dropout: float = Field(0.1, ge=0, lt=1, description="on features and on the head's layer")
    epochs: float = Field(60, gt=0, description="most passes over the instances")
    batch_size: int = Field(64, ge=1, description="instances a step")
    patience: int = Field(10, ge=0, description="stop after so many epochs without a better one")
    validation_share: float = Field(0.1, gt=0, lt=1, description="share of the queries kept apart")
    batch_instances: int = Field(64, ge=1, description="traces read at once by the candidates")
    seed: int = Field(0, ge=0, lt=2**31, description="of the split, the batches and the head")
