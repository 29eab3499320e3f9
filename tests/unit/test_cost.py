"""The calculator of costs: against enumeration, simulation, and what real runs count."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from antiphon.backends.transformers import LoadedModel
from antiphon.cli import cost as verb
from antiphon.decoding.boundaries import EveryTokens
from antiphon.decoding.memory import row_bytes
from antiphon.decoding.policies import Uniform
from antiphon.decoding.switcher import ACCOUNT, LMSwitcher, SwitcherPrompt
from antiphon.errors import InputError
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.reports.cost import (
    HIDDEN,
    LM,
    Cost,
    Machine,
    Setting,
    all_read_all,
    alone,
    calls_a_token,
    estimate,
    hidden,
    last_turns,
    lm_switcher,
    memory,
    read,
    rereading,
    rereading_switcher,
    rollouts,
    seconds_alone,
    seconds_in_turns,
    seconds_rereading,
    uniform,
)
from antiphon.reports.sizes import TABLE, ModelSize, model_size
from tests.tiny import IDS, as_query, backend, build, loaded, random_ids, three, tokenizer

SMALL = ModelSize("small", "small", 1000, 3, 16, 8)
LARGE = ModelSize("large", "large", 5000, 5, 32, 16)
FLAT = ModelSize("flat", "flat", 1000, 3, 0, 0)
"""No attention, no cache: operations are 2 parameters a position."""


# -- one response ------------------------------------------------------------------------------
def flops_by_hand(model: ModelSize, start: int, end: int) -> int:
    """Position by position; the first position attends to itself."""
    per = (
        2 * model.parameters + 4 * model.layers * model.width * c for c in range(start + 1, end + 1)
    )
    return sum(map(int, per))


def test_reading_is_counted_position_by_position() -> None:
    assert read(SMALL, 7, 5) == Cost(7, flops_by_hand(SMALL, 5, 12))
    assert read(SMALL, 5) + read(SMALL, 7, 5) == read(SMALL, 12)
    assert alone(LARGE, Setting(prompt=10, new=20)) == read(LARGE, 29)


@pytest.mark.parametrize("setting", [Setting(6, 10, 3), Setting(4, 8, 8), Setting(1, 5, 1)])
def test_even_choices_equal_their_enumeration(setting: Setting) -> None:
    """Every sequence of choices is as likely as any other."""
    models = [SMALL, LARGE, SMALL]
    orders = list(itertools.product(range(3), repeat=len(setting.lengths)))
    positions = flops = 0.0
    for order in orders:
        for speaker, model in enumerate(models):
            turns = [place for place, chosen in enumerate(order) if chosen == speaker]
            if turns:
                end = setting.prompt + sum(setting.lengths[: turns[-1] + 1]) - 1
                positions += end
                flops += flops_by_hand(model, 0, end)
    found = uniform(models, setting)
    assert found.positions == pytest.approx(positions / len(orders))
    assert found.flops == pytest.approx(flops / len(orders))
    assert found.positions < all_read_all(models, setting).positions
    silent = sum(0 not in order for order in orders) / len(orders)
    assert 1 - sum(last_turns(3, len(setting.lengths))) == pytest.approx(silent)


def test_even_choices_agree_with_a_simulation() -> None:
    setting, draw = Setting(100, 512, 50), random.Random(0)
    seen = []
    for _ in range(20_000):
        ends: dict[int, int] = {}
        written = 0
        for length in setting.lengths:
            written += length
            ends[draw.randrange(4)] = written
        seen.append(sum(100 + end - 1 for end in ends.values()))
    error = statistics.stdev(seen) / math.sqrt(len(seen))
    assert abs(statistics.fmean(seen) - uniform([SMALL] * 4, setting).positions) < 4 * error


PROMPT = random_ids([13])[0]
REAL = Setting(13, 24, 5)


def real(policy: Any, rows: int) -> list[dict[str, int]]:
    """Positions by model of rows of one prompt, as counted by the engine."""
    method = SwitchGeneration(
        three(prompt=IDS), policy, max_new_tokens=REAL.new, boundary=EveryTokens(REAL.segment)
    )
    done = method.generate([as_query(PROMPT)] * rows, seed=0)
    assert {completion.finish_reason for completion in done} == {"length"}
    return [{name: usage.positions for name, usage in c.usage.items()} for c in done]


def test_even_choices_agree_with_real_runs() -> None:
    seen = [sum(row.values()) for row in real(Uniform(), 256)]
    error = statistics.stdev(seen) / math.sqrt(len(seen))
    wanted = uniform([SMALL] * 3, REAL).positions
    assert error < 0.02 * wanted
    assert abs(statistics.fmean(seen) - wanted) < 3 * error


def test_switchers_cost_what_real_ones_count() -> None:
    prompt = SwitcherPrompt()
    switcher = LMSwitcher(backend("s", loaded(seed=7), prompt=IDS), prompt=prompt)
    encode = switcher.vocabulary.encode
    tags = {
        len(encode(prompt.begin.format(label=x)) + encode(prompt.end.format(label=x)))
        for x in "012"
    }
    question = len(encode(prompt.question_for("012") + "0")) - 1
    assert len(tags) == 1
    setting = Setting(13, 24, 5, tags=tags.pop(), question=question)
    assert {row[ACCOUNT] for row in real(switcher, 4)} == {lm_switcher(SMALL, setting).positions}

    class ReadsAll(Uniform):
        reads_states = True

    found, head = hidden([SMALL] * 3, REAL)
    assert {sum(row.values()) for row in real(ReadsAll(), 4)} == {found.positions}
    assert head.positions == 0 and head.flops > 0
    assert found.positions < all_read_all([SMALL] * 3, REAL).positions


def test_a_re_prefilling_loop_reads_the_whole_text_every_turn() -> None:
    setting = Setting(10, 11, 4, tags=3, question=5)
    # Segments of 4, 4, 3; the last token of each is not read by its writer.
    assert rereading([SMALL] * 2, setting).positions == pytest.approx(13 + 17 + 20)
    assert rereading([SMALL, LARGE], setting).flops == pytest.approx(
        sum(flops_by_hand(m, 0, n) / 2 for m in (SMALL, LARGE) for n in (13, 17, 20))
    )
    # Text so far with its tags, question, and free text of 4 tokens.
    asked = [10 + 5 + 3, 10 + 4 + 3 + 5 + 3, 10 + 8 + 6 + 5 + 3]
    assert rereading_switcher(SMALL, setting).positions == sum(asked)


# -- rollouts ----------------------------------------------------------------------------------
def rollouts_by_chance(
    n: int, setting: Setting, completions: int, draw: random.Random
) -> list[int]:
    """Positions of one instance with drawn choices: shared, unshared, rereading."""
    lengths, prompt = setting.lengths, setting.prompt
    trace = setting.new // 2 // setting.segment
    shared = n * (prompt + sum(lengths[:trace]))  # everybody reads all of the trace
    again = sum(prompt + sum(lengths[: j + 1]) - 1 for j in range(trace))
    unshared = 0
    past = [draw.randrange(n) for _ in range(trace)]
    split = sum(lengths[: trace + 1])
    for branch in range(n):
        shared += n * lengths[trace]  # and of every branch
        again += prompt + split - 1
        for _ in range(completions):
            ends = {who: sum(lengths[: j + 1]) for j, who in enumerate([*past, branch])}
            new: dict[int, int] = {}
            for j in range(trace + 1, len(lengths)):
                new[draw.randrange(n)] = sum(lengths[: j + 1])
                again += prompt + sum(lengths[: j + 1]) - 1
            shared += sum(end - split - 1 for end in new.values())
            unshared += sum(prompt + end - 1 for end in {**ends, **new}.values())
    return [shared, unshared, again]


@pytest.mark.parametrize("setting", [Setting(20, 60, 10), Setting(5, 47, 8), Setting(9, 31, 7)])
def test_rollouts_agree_with_a_simulation(setting: Setting) -> None:
    draw = random.Random(1)
    seen = [rollouts_by_chance(3, setting, 4, draw) for _ in range(1500)]
    found = rollouts([SMALL] * 3, setting, 4)
    for name, values in zip(
        ("shared", "unshared", "rereading"), zip(*seen, strict=True), strict=True
    ):
        error = statistics.stdev(values) / math.sqrt(len(values))
        assert abs(statistics.fmean(values) - found[name].positions) <= 4 * error + 1e-6, name


def test_sharing_prefixes_pays() -> None:
    found = rollouts([SMALL] * 3, Setting(), 32)
    assert 3 * found["shared"].positions < found["unshared"].positions
    assert 1.5 * found["unshared"].positions < found["rereading"].positions


def test_a_branch_that_fills_the_response_has_no_completions() -> None:
    found = rollouts([SMALL] * 3, Setting(10, 8, 8), 32)
    assert found["shared"].positions == 3 * 10 + 3 * 7
    assert found["unshared"] == Cost()
    assert found["rereading"].positions == 3 * (10 + 7)


# -- memory ------------------------------------------------------------------------------------
def test_memory_of_three_8b_models() -> None:
    models = [model_size("8B", place) for place in range(3)]
    found = memory(models, model_size("1B", 3), Setting(100, 412, 50, rows=4))
    assert found["weights"] == 2 * 25e9
    assert found["candidate_caches"] == 3 * 4 * 512 * 2 * 32 * 8 * 128 * 2
    # 512 positions, tags of ten segments (and one to spare), the question.
    assert found["switcher_cache"] == 4 * (512 + 11 * 10 + 23) * 2 * 16 * 8 * 64 * 2
    assert found["workspace"] == 4 * 512 * 2 * 32 * 8 * 128 * 2
    assert found["total"] == sum(found.values()) - found["total"]
    shared = memory(models, model_size("8B", 3), Setting(shared_base=True))
    assert shared["weights"] == 2 * 8e9
    shared = memory(models, model_size("1B", 3), Setting(shared_base=True))
    assert shared["weights"] == 2 * 9e9
    assert memory(models, None, Setting(bytes=4))["weights"] == 4 * 24e9


def test_memory_is_what_the_engine_reckons_with(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "m")
    one = model_size(str(tmp_path / "m"))
    candidates = three(prompt=IDS).candidates()
    setting = Setting(13, 24, 5, rows=1, bytes=4)
    wanted = row_bytes(candidates, Uniform(), 13 + 24, len(setting.lengths) + 1)
    found = memory([one] * 3, None, setting)
    assert found["candidate_caches"] + found["workspace"] == wanted
    assert found["weights"] == 4 * one.parameters, "the same directory is one set of weights"
    assert memory([one] * 3, one, setting)["weights"] == 4 * one.parameters


# -- sizes -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
def test_a_configuration_says_what_the_model_has(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    model.config.save_pretrained(tmp_path / "m")  # no weights
    for path in (tmp_path / "m", tmp_path / "m" / "config.json"):
        size = model_size(str(path))
        assert size.parameters == sum(p.numel() for p in model.parameters())
        info = backend("x", LoadedModel(model, "x"), tokens=tokenizer()).info
        assert size.kv_numbers * 4 == info.bytes_per_position
        assert (size.name, size.key) == ("m", str(tmp_path / "m"))
    assert size.width == 32


def test_sizes_between_those_of_the_table() -> None:
    for parameters, layers, width, kv_width in TABLE:
        size = model_size(f"{parameters / 1e6:.0f}M")
        assert (size.layers, size.width, size.kv_width) == (layers, width, kv_width)
    assert model_size("1.5b").parameters == 1.5e9
    sizes = [model_size(f"{x}M") for x in (1, 3, 7, 50, 500, 2000, 5000, 20000, 500000, 5000000)]
    for small, large in itertools.pairwise(sizes):
        assert small.layers < large.layers and small.width < large.width
        assert small.kv_width <= large.kv_width
        assert large.kv_width <= large.width
    # 12 layers width^2 is about what a transformer has.
    for size in sizes[3:8]:
        assert 0.6 < 12 * size.layers * size.width**2 / size.parameters < 1.7
    assert model_size("8B", 0).key != model_size("8B", 1).key


# -- time --------------------------------------------------------------------------------------
def test_where_operations_count_times_are_operations() -> None:
    """Endless bandwidth; without attention the expected work adds up exactly."""
    machine, setting = Machine(math.inf, 1e6), Setting(20, 47, 8, rows=6)
    models = [FLAT] * 3

    def wanted(*costs: Cost) -> Any:
        return pytest.approx(6 * sum(cost.flops for cost in costs) / 1e6)

    assert seconds_alone(machine, FLAT, setting) == wanted(alone(FLAT, setting))
    assert seconds_in_turns(machine, models, setting) == wanted(uniform(models, setting))
    asked = lm_switcher(FLAT, setting)
    turns = seconds_in_turns(machine, models, setting, LM, FLAT)
    assert turns == wanted(uniform(models, setting), asked)
    turns = seconds_in_turns(machine, models, setting, HIDDEN)
    assert turns == wanted(hidden(models, setting)[0])
    loop = seconds_rereading(machine, models, setting, FLAT)
    assert loop == wanted(rereading(models, setting), rereading_switcher(FLAT, setting))


def test_where_memory_counts_times_are_calls() -> None:
    """Endless operations; without a cache every call streams the weights once."""
    machine, setting = Machine(2000.0, math.inf), Setting(20, 40, 8, rows=6)  # one call a second
    models = [FLAT] * 3
    assert seconds_alone(machine, FLAT, setting) == pytest.approx(40)
    assert seconds_in_turns(machine, models, setting) == pytest.approx(2 * 40)
    assert seconds_in_turns(machine, models, setting, LM, FLAT) == pytest.approx(2 * 45)
    assert seconds_in_turns(machine, models, setting, HIDDEN) == pytest.approx(2 * (35 + 3 * 5))
    speakers = 3 * (1 - (2 / 3) ** 6)
    loop = seconds_rereading(machine, models, setting, FLAT)
    assert loop == pytest.approx(40 * speakers + 40)
    adapters = Setting(20, 40, 8, rows=6, shared_base=True)
    assert seconds_in_turns(machine, models, adapters) == pytest.approx(40)


def calls_by_queue(n: int, rows: int, segments: int, draw: random.Random) -> float:
    """Calls a segment of every row when the longest queue is always served."""
    queue, left, calls = [draw.randrange(n) for _ in range(rows)], rows * segments, 0
    while left > 0:
        counts = [queue.count(writer) for writer in range(n)]
        served = counts.index(max(counts))
        left -= max(counts)
        queue = [draw.randrange(n) if writer == served else writer for writer in queue]
        calls += 1
    return calls / segments


@pytest.mark.parametrize(
    ("n", "rows", "near"), [(3, 200, 0.08), (2, 200, 0.08), (5, 400, 0.08), (3, 1, 0), (3, 8, 0.2)]
)
def test_calls_a_token(n: int, rows: int, near: float) -> None:
    counted = calls_by_queue(n, rows, 300, random.Random(0))
    assert calls_a_token(n, Setting(rows=rows)) == pytest.approx(counted, rel=near)


# -- all of it, and the verb -------------------------------------------------------------------
def ask(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    verb.add(parser.add_subparsers())
    options = parser.parse_args(["cost", *flags])
    return int(options.run(options))


def test_the_verb_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--candidates",
        "8B,1B,8B",
        "--switcher",
        "1B",
        "--bandwidth",
        "3350",
        "--tflops",
        "990",
    ]
    assert ask(*flags, "--rollouts", "10", "--completions", "4", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    names = ["8B", "1B", "8B"]
    models = [model_size(name, place) for place, name in enumerate(names)]
    ways = found["ways"]
    assert list(ways) == [
        "8B alone",
        "turns, even choices",
        "turns, 1B switcher",
        "turns, at most",
        "re-prefilling loop",
    ]
    turns = ways["turns, 1B switcher"]
    both = uniform(models, Setting()) + lm_switcher(model_size("1B"), Setting())
    assert turns["positions_per_token"] == pytest.approx(both.positions / 512)
    single = alone(models[0], Setting()).flops
    assert turns["compute_to_alone"] == pytest.approx(both.flops / single)
    assert ways["8B alone"]["compute_to_alone"] == 1
    assert turns["tokens_per_second"] * turns["seconds"] == pytest.approx(8 * 512)
    wanted = rollouts(models, Setting(), 4)
    for name, one in wanted.items():
        assert found["rollouts"][name]["positions"] == pytest.approx(10 * one.positions)
    assert found["memory_alone"]["total"] == found["memory_alone"]["weights"] + 8 * 612 * 2**17


@pytest.mark.parametrize("switcher", ["none", "hidden", "8B"])
def test_the_verb_prints_tables(switcher: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("--candidates", "8B,8B", "--switcher", switcher, "--rollouts", "5") == 0
    said = capsys.readouterr().out
    for part in ("8B alone", "memory in GB, 8 rows", "rollouts: 5 instances", "expected values"):
        assert part in said
    assert "roofline" not in said
    assert ask("--candidates", "8B,8B", "--bandwidth", "3350", "--tflops", "990") == 0
    assert "not a measurement" in capsys.readouterr().out


GOOD = ("--candidates", "8B,8B")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--candidates", "8B"), "at least two candidates"),
        (("--candidates", "8B,huge"), "'huge' is neither a size nor a local model"),
        (("--candidates", "8B,"), "'' is neither a size"),
        (("--candidates", "8B,-8B"), "'-8B' is neither a size"),
        (("--candidates", "8B,0B"), "beyond what the table"),
        (("--candidates", "8B,tests"), "the configuration of 'tests' cannot be read"),
        (("--candidates", "8B,1B", "--shared-base"), "have one size"),
        ((*GOOD, "--switcher", "hiden"), "'hiden' is neither a size"),
        ((*GOOD, "--rows", "0"), "rows: 0"),
        ((*GOOD, "--new-tokens", "-5"), "new tokens: -5"),
        ((*GOOD, "--prompt-tokens", "0"), "prompt tokens: 0"),
        ((*GOOD, "--segment-tokens", "0"), "tokens of a segment: 0"),
        ((*GOOD, "--tag-tokens", "-1"), "tokens of tags: -1"),
        ((*GOOD, "--new-tokens", "100000000"), "more than 100,000 segments"),
        ((*GOOD, "--dtype", "bfloat"), "unknown dtype 'bfloat'"),
        ((*GOOD, "--tflops", "10"), "need both"),
        ((*GOOD, "--tflops", "10", "--bandwidth", "nan"), "--bandwidth is nan"),
        ((*GOOD, "--tflops", "0", "--bandwidth", "10"), "--tflops is 0"),
        ((*GOOD, "--rollouts", "0"), "--rollouts is 0"),
        ((*GOOD, "--completions", "0"), "--completions is 0"),
    ],
)
def test_bad_input(flags: Sequence[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(InputError, match=message):
        ask(*flags)


def test_times_belong_to_the_ways_they_stand_beside() -> None:
    models, switcher = [model_size("8B", place) for place in range(3)], model_size("8B", 3)
    machine = Machine(3.35e12, 9.9e14)
    found = estimate(models, Setting(), LM, switcher, machine)["ways"]
    assert found["8B alone"]["seconds"] == seconds_alone(machine, models[0], Setting())
    assert found["turns, 8B switcher"]["seconds"] == seconds_in_turns(
        machine, models, Setting(), LM, switcher
    )
    assert found["re-prefilling loop"]["seconds"] == seconds_rereading(
        machine, models, Setting(), switcher
    )
    assert "seconds" not in found["turns, at most"]
