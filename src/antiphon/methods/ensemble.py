"""Probability average: at every token the candidates' next-token distributions are averaged.

The plain baseline of turn-taking. Paper: https://arxiv.org/abs/2608.30158, which found that it beat
Switch Generation's released switcher in pools of two models.

    p(x | q, t) = sum_i w_i softmax(logits_i(q, t))[x];    x ~ p;    t <- t + x

Symbols to names: w ``weights``, normalised to 1 (even if left out); q the query, which every
candidate gets in its own prompt; t the trace; x one token. Sampling applies to p: temperature,
top-k, top-p and min-p work on log p as they do on a single model's logits.

Deviations and choices where the source is silent:

* the average is of probabilities (float64), not of logits;
* any candidate's end of sequence ends the response: the union of their end ids;
* ids that not all candidates share get probability zero, and what is left of each candidate's
  distribution is renormalised; a candidate's own end of sequence stays;
* the numbers that draw tokens are those of turn-taking: fixed by the row's seed and the position.

Cost: every candidate reads every position once, n (P + T) for prompts of P and T new tokens, and
none can rest. Needs: every candidate ``Steps``, and one vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from antiphon.backends.base import Batch, Lane, Session, Steps, require
from antiphon.backends.sampling import derive_seed, draw
from antiphon.backends.vocabulary import differences
from antiphon.decoding.alignment import Detokenizer
from antiphon.decoding.engine import Engine, TurnOptions
from antiphon.decoding.memory import free_memory
from antiphon.decoding.policies import Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.rows import Row, Turn, shared_time
from antiphon.errors import InputError
from antiphon.types import Completion, FinishReason, Query, SamplingParams

AVERAGE = "average"
"""Writer of the response's one segment; in its usage, the tokens written and the time of mixing."""


_LENGTH: FinishReason = "length"

_Models = list[tuple[Session, list[int]]]
"""A session for every set of weights, with the candidates (by index) that it computes."""


@dataclass
class _Answer:
    """A response in progress."""

    row: Row
    room: int
    full: FinishReason
    stop: tuple[str, ...]
    reader: Detokenizer
    ids: list[int] = field(default_factory=list)
    text: str = ""

    def feed(self, token: int, ends: frozenset[int]) -> None:
        """Take one drawn token; sets the row's ``finish`` when the response is complete."""
        if token in ends:
            self.row.finish = "eos"
            return
        self.ids.append(token)
        if self.stop:
            before = len(self.text)
            self.text += self.reader.push([token])
            found = [self.text.find(s, max(0, before - len(s) + 1)) for s in self.stop]
            cuts = [place for place in found if place >= 0]
            if cuts:
                self.row.finish, self.row.cut = "stop", min(cuts)
        if self.row.finish is None and len(self.ids) >= self.room:
            self.row.finish = self.full


class ProbabilityAverage:
    """The weighted average of the candidates' next-token probabilities.

    Args:
        pool: the candidates.
        weights: one a candidate, in the pool's order, at least 0; evenly if left out.
        sampling: how tokens are drawn; the pool's if left out.
        max_new_tokens: most tokens of a response.
        stop: strings that end the response; they are cut from its text.
        batch_rows: most responses written at once.

    Raises:
        InputError: weights, sampling or vocabularies that cannot be averaged.
        CapabilityError: a candidate cannot step.
    """

    def __init__(
        self,
        pool: CandidatePool,
        weights: Sequence[float] | None = None,
        sampling: SamplingParams | None = None,
        max_new_tokens: int = 512,
        stop: Sequence[str] = (),
        batch_rows: int = 32,
    ) -> None:
        self.pool = CandidatePool(pool.backends, sampling, pool.loader) if sampling else pool
        self.candidates = self.pool.candidates()
        self.weights = _normalised(weights, pool.names)
        self.sampling = self.candidates[0].sampling
        first = self.candidates[0].backend.info
        self._steppers, self._adapters = [], []
        for candidate in self.candidates:
            require(candidate.backend, "Steps", "the probability average")
            assert isinstance(candidate.backend, Steps)
            self._steppers.append(candidate.backend.stepper)
            self._adapters.append(candidate.backend.adapter)
            reason = differences(first.vocabulary, candidate.backend.info.vocabulary)
            if reason:
                raise InputError(
                    f"probabilities of {pool.names[0]!r} and {candidate.name!r} cannot be "
                    f"averaged: their vocabularies differ ({reason})",
                    remedy="leave one of them out, or take turns: turns can exchange text",
                )
            if candidate.sampling != self.sampling:
                raise InputError(
                    f"tokens of {pool.names[0]!r} and {candidate.name!r} are drawn in different "
                    "ways, and an average is drawn in one",
                    remedy="give the average its own `sampling`",
                )
        self._ends = frozenset().union(*(c.backend.info.eos_ids for c in self.candidates))
        # Turn-taking's checks of options and prompts, its rows, and its rule for foreign tokens.
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        options = TurnOptions(max_new_tokens, stop=stops, exchange="ids", batch_rows=batch_rows)
        self._engine = Engine(self.candidates, Uniform(), options)
        self._foreign = [torch.tensor(c.forbidden, dtype=torch.long) for c in self.candidates]

    def generate(
        self, queries: Sequence[Query], *, seed: int = 0, seeds: Sequence[int] | None = None
    ) -> list[Completion]:
        """Answer every query; see :meth:`antiphon.methods.switch_generation.SwitchGeneration`.

        Raises:
            InputError: a query is empty or too long; nothing was computed.
        """
        own = [derive_seed(seed, index) for index in range(len(queries))]
        if isinstance(queries, str):
            raise TypeError("queries is a list; for one query use [query]")
        if seeds is not None and len(seeds) != len(queries):
            raise InputError(
                f"{len(seeds)} seeds for {len(queries)} queries",
                remedy="give one seed a query, or `seed` for all",
            )
        rows = self._engine.rows(queries, own if seeds is None else seeds)
        options = self._engine.options
        longest = max([len(p) for row in rows for p in row.prompts], default=0)
        longest += options.max_new_tokens
        # Every candidate's cache, and a workspace beside each for rows that outlast others.
        need = 2 * longest * sum(c.backend.info.bytes_per_position for c in self.candidates)
        fits = free_memory(self.candidates) // 2 // need if need else options.batch_rows
        at_once = max(1, min(options.batch_rows, len(rows), fits))
        by_weights: dict[int, tuple[Session, list[int]]] = {}
        for index, stepper in enumerate(self._steppers):
            if id(stepper) not in by_weights:
                by_weights[id(stepper)] = (stepper.new_session(), [])
            by_weights[id(stepper)][1].append(index)
        models = list(by_weights.values())
        for session, members in models:
            session.reserve(at_once * len(members), longest)
        for start in range(0, len(rows), at_once):
            self._write(rows[start : start + at_once], models)
        return [row.completion([AVERAGE]) for row in rows]

    def _write(self, rows: Sequence[Row], models: _Models) -> None:
        """Complete the rows, side by side."""
        # Rows whose prompts are about equally long waste least when they are read together.
        answers = sorted(map(self._answer, rows), key=lambda a: max(map(len, a.row.prompts)))
        live, tokens = answers, torch.zeros(0)
        with ExitStack() as stack:
            batches = [
                stack.enter_context(session.batch(self._open(session, members, answers)))
                for session, members in models
            ]
            while True:
                logits = self._read(models, batches, live, tokens)
                with shared_time([a.row for a in live], [AVERAGE] * len(live)):
                    tokens = self._draw(logits, live)
                stay = [place for place, answer in enumerate(live) if answer.row.finish is None]
                if not stay:
                    break
                if len(stay) < len(live):
                    for (_, members), batch in zip(models, batches, strict=True):
                        starts = range(0, len(members) * len(live), len(live))
                        batch.keep([start + place for start in starts for place in stay])
                    live, tokens = [live[place] for place in stay], tokens[stay]
        for answer in answers:
            row = answer.row
            row.account(AVERAGE).tokens_written += len(answer.ids)
            if answer.ids:
                row.append(Turn(0, tuple(answer.ids)))
            for session, members in models:
                for index in members:
                    row.book(self.candidates[index].name, row.lanes[index])
                    session.release(row.lanes.pop(index))

    def _answer(self, row: Row) -> _Answer:
        options = self._engine.options
        room, full = options.max_new_tokens, _LENGTH
        for candidate, prompt in zip(self.candidates, row.prompts, strict=True):
            limit = candidate.backend.info.context_length
            if limit is not None and limit - len(prompt) < room:
                room, full = limit - len(prompt), "context"
        return _Answer(row, room, full, options.stop, Detokenizer(row.vocabularies[0]))

    def _open(
        self, session: Session, members: Sequence[int], answers: Sequence[_Answer]
    ) -> list[Lane]:
        """A lane for every member and row, member by member."""
        for index in members:
            for answer in answers:
                answer.row.lanes[index] = session.open(self._adapters[index])
        return [answer.row.lanes[index] for index in members for answer in answers]

    def _read(
        self,
        models: _Models,
        batches: Sequence[Batch],
        live: Sequence[_Answer],
        tokens: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Read the prompts at first, then ``tokens``; ``[rows, vocabulary]`` logits a candidate."""
        logits: list[torch.Tensor] = [tokens] * len(self.candidates)
        for (_, members), batch in zip(models, batches, strict=True):
            names = [self.candidates[index].name for index in members for _ in live]
            with shared_time([answer.row for answer in live] * len(members), names):
                if live[0].ids:
                    whole = batch.step(tokens.repeat(len(members)))
                else:
                    whole = batch.extend([a.row.prompts[i] for i in members for a in live])
            for place, index in enumerate(members):
                logits[index] = whole[place * len(live) : (place + 1) * len(live)]
        return logits

    def _draw(self, logits: Sequence[torch.Tensor], live: Sequence[_Answer]) -> torch.Tensor:
        """Average, draw a token for every row, and feed the answers."""
        mixed = self.average(logits)
        numbers = [answer.row.token_uniform(len(answer.ids)) for answer in live]
        uniform = torch.tensor(numbers, dtype=torch.float64)
        tokens = draw(mixed, [self.sampling] * len(live), uniform)
        for answer, token in zip(live, tokens.tolist(), strict=True):
            answer.feed(token, self._ends)
        return tokens

    def average(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """``log p``, ``[rows, vocabulary]`` float64, from every candidate's logits.

        A vocabulary narrower than another's is continued with probability zero.
        """
        width = max(part.shape[-1] for part in logits)
        total: torch.Tensor | None = None
        for foreign, weight, part in zip(self._foreign, self.weights, logits, strict=True):
            ids = foreign[foreign < part.shape[-1]].to(part.device)
            share = part.double().index_fill(1, ids, -math.inf).log_softmax(-1)
            share = share + (math.log(weight) if weight else -math.inf)
            share = torch.nn.functional.pad(share, (0, width - share.shape[-1]), value=-math.inf)
            total = share if total is None else torch.logaddexp(total, share.to(total.device))
        assert total is not None
        return total


def _normalised(weights: Sequence[float] | None, names: Sequence[str]) -> list[float]:
    """Weights that sum to 1.

    Raises:
        InputError: not one a candidate, one that is negative or no number, or all of them zero.
    """
    given = [1.0] * len(names) if weights is None else [float(weight) for weight in weights]
    sound = all(math.isfinite(weight) and weight >= 0 for weight in given) and sum(given) > 0
    if len(given) != len(names) or not sound:
        raise InputError(
            f"the weights of the average are {given} for the candidates {', '.join(names)}; each "
            "has one, which is at least 0, and one of them is above 0",
            remedy="correct them, or leave them out for an even average",
        )
    return [weight / sum(given) for weight in given]
