"""The hidden-state switcher: a small head on states that the candidates compute anyway.

An LM switcher reads every trace once more, with tags and a question. But every candidate reads the
whole trace too, sooner or later, and what it sees at the end of it says much about who should go
on: whether it knows what comes next, and how surely. So at a boundary each candidate reads what it
has not read yet, which it would have to read before its next turn, and a head looks at the final
hidden states and at the next-token distributions there. A decision costs one small matrix product.

This goes beyond "Don't Throw Away Your Pretrained Model" (arXiv 2510.09913), whose readers asked
for a switcher smaller than the candidates; an independent check (arXiv 2608.30158) found a small
router on hidden states better than the released switcher.

Cost: candidates read n (P + T) positions a row, less what no decision follows. Under uniform turns
one that is not chosen again does not read the rest, which saves a few per cent of that. What a
candidate saw when it read is kept until it speaks, so nothing is read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from antiphon.backends.base import Backend
from antiphon.decoding.policies import (
    Decision,
    allowed_mask,
    check_count,
    check_selection,
    decide,
)
from antiphon.decoding.rows import Row, shared_time
from antiphon.decoding.switcher import ACCOUNT
from antiphon.decoding.switcher_card import SwitcherCard, read_card
from antiphon.errors import CapabilityError, InputError

WEIGHTS = "head.safetensors"


def signals(
    logits: Sequence[torch.Tensor], groups: Sequence[int], writers: Sequence[int]
) -> torch.Tensor:
    """What boundaries look like apart from the states, ``[rows, n (n + 2) + n + 1]`` float32.

    Args:
        logits: each candidate's next-token logits after reading the whole row,
            ``[rows, vocabulary]``.
        groups: vocabulary group of each candidate.
        writers: who wrote each row's last segment; -1 for nobody, or forced text.

    Returns:
        By candidate: probability of its best token, entropy (nats), probability of each candidate's
        best token (0 where that is of another vocabulary); then the last writer, one of n + 1
        places, the first for nobody.
    """
    probabilities = [one.float().softmax(-1).cpu() for one in logits]
    best = [one.argmax(-1, keepdim=True) for one in probabilities]
    columns = []
    for group, one in zip(groups, probabilities, strict=True):
        columns.append(one.amax(-1, keepdim=True))
        columns.append(-(one * one.clamp_min(1e-12).log()).sum(-1, keepdim=True))
        for other, token in zip(groups, best, strict=True):
            # Vocabularies of one group may differ in size by a few added tokens.
            size = one.shape[1]
            known = one.gather(1, token.clamp(max=size - 1)) * (token < size)
            columns.append(known if group == other else torch.zeros_like(known))
    place = nn.functional.one_hot(torch.tensor(writers) + 1, len(logits) + 1)
    return torch.cat([*columns, place.float()], dim=1)


class ChoiceHead(nn.Module):
    """Standardised states and signals, one hidden layer, one score a candidate.

    Args:
        features: how many, see :func:`features_of`.
        candidates: n.
        hidden: width of the head.
        dropout: on features and hidden layer, in training.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, features: int, candidates: int, hidden: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.dropout = nn.Dropout(dropout)
        self.inner = nn.Linear(features, hidden)
        self.outer = nn.Linear(hidden, candidates)

    def standardise(self, features: torch.Tensor) -> None:
        """Set mean and scale from training features, ``[instances, features]``."""
        self.mean = features.mean(0)
        spread = features.std(0, correction=min(1, len(features) - 1))
        # What never varied was not learned from: where it does vary, it must not decide.
        self.scale = torch.where(spread > 1e-6, spread.clamp_min(1e-3), torch.inf)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``[rows, features]`` -> ``[rows, n]`` scores."""
        inner = self.inner(self.dropout((features - self.mean) / self.scale))
        scores: torch.Tensor = self.outer(self.dropout(nn.functional.gelu(inner)))
        return scores


def features_of(rows: Sequence[Row], candidates: int) -> torch.Tensor:
    """What a head looks at, ``[rows, features]`` float32: the candidates' final hidden states, the
    signals, and the share of the response that is written.

    Every candidate must have read all of every row (see :meth:`Engine.read`).

    Raises:
        CapabilityError: a model does not show its states.
    """
    parts = []
    for index in range(candidates):
        states = [row.views[index].state for row in rows]
        shown = [state for state in states if state is not None]
        if len(shown) < len(states):
            raise CapabilityError(
                f"candidate {index} does not show its hidden states",
                remedy="use an LM switcher with this pool",
            )
        parts.append(torch.stack(shown).float().cpu())
    logits = [torch.stack([row.views[i].logits for row in rows]) for i in range(candidates)]
    writers = [row.turns[-1].writer if row.turns else -1 for row in rows]
    written = torch.tensor([[row.tokens / row.max_new_tokens] for row in rows])
    return torch.cat([*parts, signals(logits, rows[0].groups, writers), written], dim=1)


def load_head(folder: Path) -> tuple[ChoiceHead, SwitcherCard]:
    """A trained head and what it is.

    Raises:
        InputError: the directory holds none.
    """
    card, weights = read_card(str(folder)), folder / WEIGHTS
    if card is None or card.kind != "hidden" or not weights.is_file():
        raise InputError(
            f"{folder} holds no hidden-state switcher",
            remedy="train one with `antiphon switcher train --kind hidden`",
        )
    try:
        head = ChoiceHead(card.settings["features"], len(card.candidates), card.settings["hidden"])
        head.load_state_dict(load_file(weights))
    except Exception as error:  # a torn file, or another head's
        raise InputError(
            f"the head in {folder} cannot be read: {error}",
            remedy="train the switcher again with --overwrite",
        ) from error
    return head.eval(), card


def can_see(row: Row, candidates: int) -> bool:
    """Whether every candidate has read all of the row; not so where a context is full."""
    return all(index in row.views for index in range(candidates))


class HiddenStateSwitcher:
    """A head as policy.

    Args:
        head: trained for this pool, see :mod:`antiphon.training.hidden`.
        names: of the candidates that it was trained for, in order.
        top_p: draw the candidate from the smallest set of this mass; ``None`` takes the best.
        temperature: divides the scores.
        without: candidates that may not be chosen.

    Raises:
        InputError: top-p or temperature is out of range.
    """

    reads_states = True

    def __init__(
        self,
        head: ChoiceHead,
        names: Sequence[str],
        *,
        top_p: float | None = 0.9,
        temperature: float = 1.0,
        without: Sequence[str] = (),
    ) -> None:
        check_selection(top_p, temperature)
        self.head = head.eval()
        self.trained_for = list(names)
        self.top_p = top_p
        self.temperature = temperature
        self.without = frozenset(without)

    def start(self, names: Sequence[str]) -> None:
        self.names = list(names)
        check_count(self.trained_for, self.names)
        self._allowed = allowed_mask(self.names, self.without)

    def check(self, row: Row) -> None:
        """What the candidates can read, the head can judge."""

    def forget(self, row: Row) -> None:
        """Nothing is kept."""

    def models(self, segments: int) -> list[tuple[Backend, int]]:
        return []

    def prepare(self, rows: int, positions: int, segments: int) -> None:
        """Nothing to prepare."""

    def choose(self, rows: Sequence[Row]) -> list[Decision | None]:
        with shared_time(list(rows), [ACCOUNT] * len(rows)):
            return self._choose(rows)

    @torch.no_grad()
    def _choose(self, rows: Sequence[Row]) -> list[Decision | None]:
        count = len(self.names)
        seen = [place for place, row in enumerate(rows) if can_see(row, count)]
        decisions: list[Decision | None] = [None] * len(rows)
        if not seen:
            return decisions
        features = features_of([rows[place] for place in seen], count)
        expected = self.head.mean.shape[0]
        if features.shape[1] != expected:
            raise InputError(
                f"the hidden-state switcher was trained on {expected} features and this pool "
                f"shows {features.shape[1]}: the models are others",
                remedy="use the pool it was trained for, or train one for this pool",
            )
        for place, scores in zip(seen, self.head(features).double().numpy(), strict=True):
            row = rows[place]
            row.account(ACCOUNT).decisions += 1
            decisions[place] = decide(
                row, scores, self.names, self._allowed, self.temperature, self.top_p
            )
        return decisions
