"""Flags from configuration fields, progress without a terminal, and the lab's metrics."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from antiphon.cli.flags import add_config_flags, add_fields, config_from, fields_from, turns_from
from antiphon.cli.progress import counting, in_order, stages
from antiphon.config import CollectConfig, GenerateConfig, Strict
from antiphon.errors import InputError
from antiphon.evaluation.generation import Item
from antiphon.evaluation.scoring import load_scorer
from antiphon.lab.world import SKILLS, World


# -- fields ------------------------------------------------------------------------------------
class Inner(Strict):
    x: int = 0


class Some(Strict):
    """Fields of all kinds."""

    count: int = Field(3, ge=1, description="how many, at most 100%")
    share: float | None = Field(None, description="a share")
    kind: Literal["plain", "odd"] = Field("plain", description="which")
    names: list[str] = Field(default_factory=list, description="names")
    on: bool = Field(False, description="whether")
    inner: Inner = Field(Inner(), description="no flag")


def parser(**more: Any) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_fields(made.add_argument_group("some"), Some, **more)
    return made


def test_every_plain_field_has_a_flag() -> None:
    given = [
        "--count",
        "5",
        "--share",
        "0.5",
        "--kind",
        "odd",
        "--names",
        "a",
        "--names",
        "b",
        "--on",
    ]
    found = fields_from(parser().parse_args(given), Some)
    assert found == Some(count=5, share=0.5, kind="odd", names=["a", "b"], on=True)
    assert fields_from(parser().parse_args([]), Some) == Some()
    assert fields_from(parser().parse_args([]), Some, inner={"x": 1}).inner.x == 1
    help_text = parser().format_help()
    assert "how many, at most 100% (3)" in help_text
    assert "--inner" not in help_text
    assert "--kind" not in parser(leave_out=("kind",)).format_help()


def test_flags_that_are_not_given_are_none() -> None:
    assert set(vars(parser().parse_args([])).values()) == {None}


def test_impossible_values_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="`count`: input should be greater") as caught:
        fields_from(parser().parse_args(["--count", "0"]), Some, sharp=1)
    assert "2 mistakes in the flags" in str(caught.value) and "`sharp`" in str(caught.value)
    with pytest.raises(SystemExit):
        parser().parse_args(["--kind", "other"])
    assert "invalid choice" in capsys.readouterr().err


# -- configuration files and flags -------------------------------------------------------------
def options_of(kind: type[Any], *given: str) -> argparse.Namespace:
    made = argparse.ArgumentParser()
    made.add_argument("--config", type=Path)
    add_config_flags(made, kind)
    return made.parse_args(given)


POOL = ["-c", "P=base/", "-c", "A=aligned/"]


def test_flags_are_laid_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    (tmp_path / "near").mkdir()
    file.write_text(
        "candidates: [{name: P, model: near}, {name: A, model: hub/name}]\n"
        "policy: {kind: fixed, candidate: P}\nbatch_rows: 3\n"
        "completions: 5\nsampling: {top_k: 4}\nboundary: {kind: sentence}\n"
    )
    given = ["--config", str(file), "--traces", "2", "--top-p", "0.5", "--set", "cut_low=0.2"]
    found = turns_from(options_of(CollectConfig, *given, "--dtype", "float32"), CollectConfig)
    assert [candidate.model for candidate in found.candidates] == [
        str(tmp_path / "near"),
        "hub/name",
    ]
    assert [candidate.dtype for candidate in found.candidates] == ["float32"] * 2
    assert (found.completions, found.traces, found.cut_low) == (5, 2, 0.2)
    assert (found.sampling.top_k, found.sampling.top_p) == (4, 0.5)
    assert found.boundary.kind == "sentence"
    # Keys of `collect` are no keys of `generate`.
    with pytest.raises(InputError, match="unknown key `completions`"):
        config_from(options_of(GenerateConfig, "--config", str(file)))


def test_a_misspelt_key_of_either_command_is_an_error(tmp_path: Path) -> None:
    for pair, said in (
        ("completion=3", "did you mean 'completions'"),
        ("sampling.temprature=1", "did you mean 'temperature'"),
        ("boundary.knd=tokens", "did you mean 'kind'"),
    ):
        with pytest.raises(InputError) as caught:
            turns_from(options_of(CollectConfig, *POOL, "--set", pair), CollectConfig)
        assert said in str(caught.value)


def test_collecting_has_no_policy_flags() -> None:
    for flag in ("--policy", "--switcher", "--schedule", "--batch-rows"):
        with pytest.raises(SystemExit):
            options_of(CollectConfig, flag, "x")


def test_an_entropy_threshold_implies_its_boundary() -> None:
    found = turns_from(
        options_of(CollectConfig, *POOL, "--entropy-threshold", "1.5"), CollectConfig
    )
    assert (found.boundary.kind, found.boundary.threshold) == ("entropy", 1.5)


@pytest.mark.parametrize(
    ("card", "kind"),
    [
        (None, "lm"),
        ('{"kind": "lm"}', "lm"),
        ('{"kind": "hidden"}', "hidden"),
        ("{}", "lm"),
        ("[1]", "lm"),
        ("{torn", "lm"),
    ],
)
def test_a_switchers_directory_says_which_policy_it_is(
    card: str | None, kind: str, tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "switcher.json").write_text(card)
    found = config_from(options_of(GenerateConfig, *POOL, "--switcher", str(tmp_path)))
    assert found.policy.kind == kind
    assert found.policy.switcher is not None and found.policy.switcher.model == str(tmp_path)


def test_another_policy_drops_what_belonged_to_the_files(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    policy = {"kind": "lm", "switcher": {"model": "s"}, "labels": ["x", "y"], "without": ["P"]}
    candidates = [{"name": "P", "model": "p"}, {"name": "A", "model": "a"}]
    file.write_text(json.dumps({"candidates": candidates, "policy": policy}))
    given = ["--config", str(file)]
    assert config_from(options_of(GenerateConfig, *given)).policy.labels == ["x", "y"]
    fixed = config_from(options_of(GenerateConfig, *given, "--speaker", "A")).policy
    assert (fixed.kind, fixed.candidate, fixed.switcher, fixed.labels) == ("fixed", "A", None, None)
    with pytest.raises(InputError, match="each mean another policy"):
        config_from(options_of(GenerateConfig, *given, "--speaker", "A", "--schedule", "P"))


# -- progress ----------------------------------------------------------------------------------
def test_counting_prints_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("antiphon.cli.progress.time.monotonic", lambda: float(next(now)))
    with counting("instances", "informative") as told:
        for done in range(0, 41):
            told(done, 40, done // 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "instances: 0 of 40"
    assert len(lines) == 11
    # 4 done in 20 units of a clock that ticks twice a line: 36 are left, at 5 each.
    assert lines[1] == "instances: 4 of 40, 25% informative, about 180 s left"
    assert lines[-1].startswith("instances: 40 of 40, 25% informative, about 0 s left")


def test_counting_goes_on_from_what_was_there(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("instances", "informative") as told:
        told(0, 0, 0)
        told(30, 40, 0)
    assert "30 of 40, 0% informative" in capsys.readouterr().err


def test_stages_print_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    with stages() as report:
        for done in range(1, 31):
            report("reading", done, 30)
        in_order(report)("F", 1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading: 1 of 30" and lines[-2] == "reading: 30 of 30"
    assert len(lines) == 12
    assert lines[-1] == "training F, 2 of 3: 1 of 2"


# -- the lab's metrics -------------------------------------------------------------------------
@pytest.mark.parametrize("skill", SKILLS)
def test_the_labs_metrics_score_its_questions(skill: str) -> None:
    world = World.make(0, "tiny")
    exact = load_scorer("antiphon.lab.metrics:exact", None)
    partial = load_scorer("antiphon.lab.metrics:partial", None)
    for question in world.questions(skill, "train", 3):
        fields = {"skill": skill, "answer": question.answer, "checks": list(question.checks)}
        item = Item(question.text, fields)
        for scorer in (exact, partial):
            scorer.check([item])
            assert (scorer.low, scorer.high) == (0.0, 1.0)
            assert scorer.score([question.gold_trace, "", "nothing"], [item] * 3) == [1.0, 0.0, 0.0]
        if skill == "both":
            first = question.gold_trace.split(";")[0]
            assert exact.score([first], [item]) == [0.0]
            assert partial.score([first], [item]) == [0.25]
        with pytest.raises(InputError, match="lacks the field 'skill'"):
            exact.check([Item(question.text, {"answer": "1", "checks": []})])
