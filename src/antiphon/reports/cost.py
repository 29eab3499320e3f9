"""What taking turns costs: positions, operations, bytes, and a rough time. Arithmetic only.

Symbols: ``n`` candidates, ``P`` prompt tokens, ``T`` new tokens in ``K`` segments of ``s`` (the
last may be shorter), ``L_j`` tokens of the response after segment ``j``. All for one response; a
*position* is one token pushed through one model. No response ends early.

* One candidate alone reads ``P + T - 1``: the last token is read by nobody.
* In turns a candidate reads all that stands before its last turn, and its turn: ``P + L_j - 1`` if
  that is segment ``j``. With even, independent choices ``j`` is a given candidate's last segment
  with probability ``(1/n) (1 - 1/n)^(K-j)``, so a row costs ``n`` times the sum over ``j`` of
  probability times positions. Never more than ``n (P + T)``.
* An LM switcher reads prompt and trace once, ``tags`` a segment, and the ``question`` at each of
  ``K`` decisions: ``P + L_(K-1) + tags (K-1) + question K``.
* A hidden-state switcher lets every candidate read all there is at every decision; the last segment
  is followed by none: ``n (P + L_(K-1)) + s_K - 1``.
* A re-prefilling loop reads the whole text at every turn, and asks its switcher for free text of a
  segment's length.

Operations of a position in context ``c``: ``2 parameters + 4 layers width c`` (forward pass).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from antiphon.errors import InputError
from antiphon.reports.sizes import ModelSize

LM, HIDDEN, NONE = "lm", "hidden", "none"

HEAD_WIDTH = 64
"""Of a hidden-state switcher's head."""

MOST_SEGMENTS = 10**5


@dataclass(frozen=True)
class Setting:
    """What is to be generated.

    Attributes:
        prompt: tokens of the prompt, the same for every model (P).
        new: tokens of the response (T).
        segment: tokens of a segment (s).
        rows: responses at once.
        tags: tokens an LM switcher reads around a segment.
        question: tokens of its question.
        bytes: of one number, in weights and caches.
        shared_base: candidates (and a switcher of their size) are adapters over one base.

    Raises:
        InputError: a number below its least value, or too many segments.
    """

    prompt: int = 100
    new: int = 512
    segment: int = 50
    rows: int = 8
    tags: int = 11
    question: int = 23
    bytes: int = 2
    shared_base: bool = False

    def __post_init__(self) -> None:
        least = {"prompt": 1, "new": 1, "segment": 1, "rows": 1, "tags": 0, "question": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(
                    f"{_MEANINGS[name]}: {getattr(self, name)}", remedy=f"give {low} or more"
                )
        if self.new > MOST_SEGMENTS * self.segment:
            raise InputError(
                f"{self.new} new tokens in segments of {self.segment} are more than "
                f"{MOST_SEGMENTS:,} segments",
                remedy="give fewer tokens or longer segments",
            )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each segment; the last takes what is left."""
        whole, rest = divmod(self.new, self.segment)
        return [self.segment] * whole + ([rest] if rest else [])


_MEANINGS = {
    "prompt": "prompt tokens",
    "new": "new tokens",
    "segment": "tokens of a segment",
    "rows": "rows",
    "tags": "tokens of tags",
    "question": "tokens of a question",
}


@dataclass(frozen=True)
class Cost:
    """Expected work for one response."""

    positions: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.positions + other.positions, self.flops + other.flops)

    def times(self, factor: float) -> Cost:
        return Cost(factor * self.positions, factor * self.flops)


def read(model: ModelSize, count: float, start: float = 0) -> Cost:
    """Reading ``count`` positions behind ``start`` that are cached already."""
    contexts = count * start + count * (count + 1) / 2
    flops = 2 * model.parameters * count + 4 * model.layers * model.width * contexts
    return Cost(count, flops)


def total(costs: Sequence[Cost]) -> Cost:
    """Their sum."""
    return sum(costs, Cost())


# -- one response ------------------------------------------------------------------------------
def last_turns(n: int, segments: int) -> list[float]:
    """Probability that a given candidate's last turn is segment 1, 2, ... if choices are even; what
    is missing to 1 is that it never speaks."""
    return [(1 / n) * (1 - 1 / n) ** (segments - j) for j in range(1, segments + 1)]


def ends(lengths: Sequence[int]) -> list[int]:
    """Tokens of the response after each segment."""
    found = []
    written = 0
    for length in lengths:
        written += length
        found.append(written)
    return found


def alone(model: ModelSize, setting: Setting) -> Cost:
    """One model writes everything."""
    return read(model, setting.prompt + setting.new - 1)


def uniform(models: Sequence[ModelSize], setting: Setting) -> Cost:
    """Even choices among the models, each with its own cache."""
    chances = last_turns(len(models), len(setting.lengths))
    return total(
        [
            read(model, setting.prompt + end - 1).times(chance)
            for model in models
            for chance, end in zip(chances, ends(setting.lengths), strict=True)
        ]
    )


def all_read_all(models: Sequence[ModelSize], setting: Setting) -> Cost:
    """The most that turns can cost."""
    return total([read(model, setting.prompt + setting.new) for model in models])


def hidden(models: Sequence[ModelSize], setting: Setting) -> tuple[Cost, Cost]:
    """Candidates under a hidden-state switcher, and its head: two layers over all candidates' last
    hidden states and a few numbers more, once a decision (``antiphon.decoding.hidden``)."""
    before, last = setting.prompt + setting.new - setting.lengths[-1], setting.lengths[-1]
    reading = [
        read(model, before) + read(model, last - 1, before).times(1 / len(models))
        for model in models
    ]
    n = len(models)
    features = sum(model.width for model in models) + n * (n + 2) + n + 2
    head = 2 * HEAD_WIDTH * (features + n)
    return total(reading), Cost(0, len(setting.lengths) * head)


def lm_switcher(model: ModelSize, setting: Setting) -> Cost:
    """An LM switcher's decisions; the question is read in a cache that is cropped again."""
    cost, known = Cost(), 0
    for length in [0, *setting.lengths[:-1]]:
        new = setting.prompt if known == 0 else length + setting.tags
        cost += read(model, new + setting.question, known)
        known += new
    return cost


def rereading(models: Sequence[ModelSize], setting: Setting) -> Cost:
    """Candidates of a re-prefilling loop under even choices."""
    each = [
        read(model, setting.prompt + end - 1).times(1 / len(models))
        for model in models
        for end in ends(setting.lengths)
    ]
    return total(each)


def rereading_switcher(model: ModelSize, setting: Setting) -> Cost:
    """Its switcher: the tagged text again at every decision, then free text of a segment."""
    asked = [
        setting.prompt + end - length + setting.tags * place + setting.question
        for place, (length, end) in enumerate(
            zip(setting.lengths, ends(setting.lengths), strict=True)
        )
    ]
    return total([read(model, tokens + setting.segment - 1) for tokens in asked])


# -- memory ------------------------------------------------------------------------------------
def memory(
    models: Sequence[ModelSize], switcher: ModelSize | None, setting: Setting
) -> dict[str, float]:
    """Bytes: ``weights``, ``candidate_caches``, ``switcher_cache``, ``workspace``, ``total``.

    Every distinct set of weights counts once. A workspace (one for all, as large as the largest
    cache) holds the rows that are computed together. Activations and logits are left out.
    """
    distinct = {model.key: model.parameters for model in models}
    if setting.shared_base:
        distinct = {"base": models[0].parameters}
    if switcher is not None and not (
        setting.shared_base and switcher.parameters == models[0].parameters
    ):
        distinct.setdefault(switcher.key if switcher.is_local else "switcher", switcher.parameters)
    positions = setting.prompt + setting.new
    caches = [model.kv_numbers * positions for model in models]
    asked = 0.0
    if switcher is not None:
        more = setting.tags * (len(setting.lengths) + 1) + setting.question
        asked = switcher.kv_numbers * (positions + more)
    parts = {
        "weights": sum(distinct.values()),
        "candidate_caches": setting.rows * sum(caches),
        "switcher_cache": setting.rows * asked,
        "workspace": setting.rows * max(*caches, asked),
    }
    parts["total"] = sum(parts.values())
    return {name: numbers * setting.bytes for name, numbers in parts.items()}


# -- time --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Machine:
    """A roofline: a call takes as long as its operations or its memory traffic, whichever is more.

    Attributes:
        bandwidth: bytes a second.
        flops: operations a second.
    """

    bandwidth: float
    flops: float

    def call(
        self, model: ModelSize, setting: Setting, rows: float, count: float, start: float
    ) -> float:
        """Seconds of one call that reads ``count`` positions of each row behind ``start``."""
        cached = rows * model.kv_numbers * (start + count)
        moved = setting.bytes * (model.parameters + cached)
        return max(rows * read(model, count, start).flops / self.flops, moved / self.bandwidth)

    def segment(
        self, model: ModelSize, setting: Setting, rows: float, unread: float, at: float, length: int
    ) -> float:
        """Seconds of one turn: reading what is new, then a token a call. ``at``: positions that
        stand before the turn, of which ``unread`` are new to the writer."""
        seconds = self.call(model, setting, rows, unread, at - unread) if unread else 0.0
        if length > 1:
            middle = at + (length - 1) / 2
            seconds += (length - 1) * self.call(model, setting, rows, 1, middle)
        return seconds


def seconds_alone(machine: Machine, model: ModelSize, setting: Setting) -> float:
    """All rows by one model."""
    return machine.segment(
        model, setting, setting.rows, setting.prompt, setting.prompt, setting.new
    )


def calls_a_token(n: int, setting: Setting) -> float:
    """Model calls that bring every row one token further.

    Rows wait for their writer and the longest queue is served: (n + 1) / 2 calls of 2 / (n + 1) of
    the rows each, if there are many rows; one row needs one. Adapters over one base share a call.
    """
    return 1.0 if setting.shared_base else (min(n, setting.rows) + 1) / 2


def seconds_in_turns(
    machine: Machine,
    models: Sequence[ModelSize],
    setting: Setting,
    kind: str = NONE,
    switcher: ModelSize | None = None,
) -> float:
    """All rows, even choices; ``kind``: who chooses."""
    n, calls = len(models), calls_a_token(len(models), setting)
    rows, at = setting.rows / calls, float(setting.prompt)
    seconds, asked, new, away = 0.0, 0, setting.prompt, float(setting.prompt)
    for place, length in enumerate(setting.lengths):
        unread = 0.0 if kind == HIDDEN else away
        turn = sum(machine.segment(m, setting, rows, unread, at, length) for m in models) / n
        if kind == HIDDEN:
            # The writer of the segment before has only its last token left to read.
            left = (1 + (n - 1) * new) / n if place else new
            turn += sum(machine.call(m, setting, rows, left, at - left) for m in models)
        if switcher is not None:
            chunk = new + (setting.tags if place else 0)
            turn += machine.call(switcher, setting, rows, chunk + setting.question, asked)
            asked += chunk
        seconds += calls * turn
        # What a candidate has not read: its own last token if it wrote, else all that is new.
        away = 1 / n + (1 - 1 / n) * (away + length)
        at, new = at + length, length
    return seconds


def seconds_rereading(
    machine: Machine, models: Sequence[ModelSize], setting: Setting, switcher: ModelSize | None
) -> float:
    """All rows by a re-prefilling loop: rows of one speaker in one call, segment by segment."""
    n = len(models)
    speakers = n * (1 - (1 - 1 / n) ** setting.rows)
    seconds, at = 0.0, setting.prompt
    for place, length in enumerate(setting.lengths):
        rows = setting.rows / speakers
        turns = sum(machine.segment(m, setting, rows, at, at, length) for m in models) / n
        seconds += speakers * turns
        if switcher is not None:
            asked = at + setting.tags * place + setting.question
            seconds += machine.segment(
                switcher, setting, setting.rows, asked, asked, setting.segment
            )
        at += length
    return seconds


# -- rollouts ----------------------------------------------------------------------------------
def rollouts(models: Sequence[ModelSize], setting: Setting, completions: int) -> dict[str, Cost]:
    """One training instance of a switcher: a trace of half the response (whole segments), one
    segment by every candidate, ``completions`` of each to the end.

    Returns:
        ``shared``: trace, branches and completions fork each other's caches; everybody reads all of
        trace and branch. ``unshared``: every completion from its query on, with caches of its own.
        ``rereading``: its turns, and those of trace and branches, each read the whole text again.
    """
    n, prompt = len(models), setting.prompt
    trace = setting.new // 2 // setting.segment
    lengths, stops = setting.lengths, ends(setting.lengths)
    start = stops[trace - 1] if trace else 0
    split = stops[trace]
    chances = last_turns(n, len(lengths) - trace - 1)
    runs = completions if chances else 0  # a branch that fills the response is its own completion

    shared, unshared, again = Cost(), Cost(), Cost()
    for model in models:
        shared += read(model, prompt + start)
        if chances:
            shared += read(model, split - start, prompt + start).times(n)
        else:
            shared += read(model, split - start - 1, prompt + start)
        for chance, end in zip(chances, stops[trace + 1 :], strict=True):
            shared += read(model, end - split - 1, prompt + split).times(n * runs * chance)
            unshared += read(model, prompt + end - 1).times(n * runs * chance)
            again += read(model, prompt + end - 1).times(runs)
        silent = 1 - sum(chances)  # in its completion: its last turn is the branch, or in the trace
        unshared += read(model, prompt + split - 1).times(runs * silent)
        for chance, end in zip(last_turns(n, trace), stops[:trace], strict=True):
            unshared += read(model, prompt + end - 1).times((n - 1) * runs * silent * chance)
            again += read(model, prompt + end - 1).times(1 / n)
        again += read(model, prompt + split - 1)
    return {"shared": shared, "unshared": unshared, "rereading": again}


# -- all of it ---------------------------------------------------------------------------------
def estimate(
    models: Sequence[ModelSize],
    setting: Setting,
    kind: str = NONE,
    switcher: ModelSize | None = None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Every way of writing the responses, beside the largest candidate alone.

    Args:
        models: the candidates, at least two.
        setting: what is generated.
        kind: ``lm`` (with ``switcher``), ``hidden`` or ``none``.
        switcher: the LM switcher.
        machine: adds a rough ``seconds``, ``tokens_per_second`` and ``time_to_alone`` to each way.

    Returns:
        ``models``, ``setting``, ``memory`` in bytes (and ``memory_alone``), and ``ways``: by name
        ``positions`` and ``flops`` of candidates and of the switcher for one response,
        ``positions_per_token``, ``compute_to_alone``.

    Raises:
        InputError: fewer than two candidates, or adapters of different sizes over one base.
    """
    if len(models) < 2:
        raise InputError(
            "turns need at least two candidates, and one was given",
            remedy="give several, e.g. 8B,8B,8B",
        )
    if setting.shared_base and len({model.parameters for model in models}) > 1:
        raise InputError(
            "candidates over one shared base have one size, and these differ",
            remedy="leave the shared base out, or give equal sizes",
        )
    largest = max(models, key=lambda model: model.parameters)
    none = Cost()
    ways: dict[str, tuple[Cost, Cost]] = {
        f"{largest.name} alone": (alone(largest, setting), none),
        "turns, even choices": (uniform(models, setting), none),
    }
    again = none
    if kind == HIDDEN:
        ways["turns, hidden switcher"] = hidden(models, setting)
    elif switcher is not None:
        asked = lm_switcher(switcher, setting)
        ways[f"turns, {switcher.name} switcher"] = (uniform(models, setting), asked)
        again = rereading_switcher(switcher, setting)
    ways["turns, at most"] = (all_read_all(models, setting), none)
    ways["re-prefilling loop"] = (rereading(models, setting), again)
    base = alone(largest, setting).flops
    found = {
        name: _way(candidates, asked, setting.new, base)
        for name, (candidates, asked) in ways.items()
    }
    if machine is not None:
        _add_times(found, machine, models, setting, kind, switcher)
    held_alone = memory([largest], None, replace(setting, shared_base=False))
    held_alone["total"] -= held_alone.pop("workspace")  # its rows lie side by side
    return {
        "setting": {**asdict(setting), "switcher": switcher.name if switcher else kind},
        "models": [asdict(model) for model in (*models, *([switcher] if switcher else []))],
        "ways": found,
        "memory": memory(models, switcher, setting),
        "memory_alone": {**held_alone, "workspace": 0.0},
    }


def _way(candidates: Cost, asked: Cost, new: int, base: float) -> dict[str, Any]:
    both = candidates + asked
    return {
        "candidates": asdict(candidates),
        "switcher": asdict(asked),
        "positions_per_token": both.positions / new,
        "compute_to_alone": both.flops / base,
    }


def _add_times(
    ways: dict[str, dict[str, Any]],
    machine: Machine,
    models: Sequence[ModelSize],
    setting: Setting,
    kind: str,
    switcher: ModelSize | None,
) -> None:
    largest = max(models, key=lambda model: model.parameters)
    names = [name for name in ways if name != "turns, at most"]
    times = [
        seconds_alone(machine, largest, setting),
        seconds_in_turns(machine, models, setting),
        seconds_rereading(machine, models, setting, switcher),
    ]
    if len(names) > len(times):
        times.insert(2, seconds_in_turns(machine, models, setting, kind, switcher))
    for name, seconds in zip(names, times, strict=True):
        ways[name] |= {
            "seconds": seconds,
            "tokens_per_second": setting.rows * setting.new / seconds,
            "time_to_alone": seconds / times[0],
        }
