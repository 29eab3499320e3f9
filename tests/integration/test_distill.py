"""`antiphon distill` as a person uses it: what is learned, reports, resumption, bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from antiphon.cli.main import main
from antiphon.evaluation.scoring import MetricScorer
from antiphon.lab.build import Lab
from antiphon.lab.pool import lab_config
from antiphon.training import distillation
from antiphon.training.distill_settings import DistillConfig
from antiphon.training.finetuning import TrainConfig

pytest.importorskip("accelerate")
pytest.importorskip("peft")

METRIC = f"{__name__}:vowels"
WARM = ["--temperature", "1", "--top-p", "1"]
QUICK = ["--epochs", "2", "--batch-size", "8", "--learning-rate", "0.01"]

Run = Callable[..., int]


def vowels(text: str, fields: dict[str, Any]) -> float:
    """Something that random checkpoints differ in."""
    return min(1.0, sum(letter in "aeiou" for letter in text.lower()) / 30)


@pytest.fixture
def run() -> Run:
    return lambda *arguments: main([str(argument) for argument in arguments])


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path / "task.jsonl", 24)


def broken(text: str, fields: dict[str, Any]) -> float:
    """A metric with a mistake."""
    return float(fields["nothing"])


def write_task(path: Path, count: int, word: str = "plus") -> Path:
    lines = [
        {"id": i, "input": f"What is QZB {word} {'KXA' * (i % 4 + 1)} {i}?", "answer": "four"}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(lab: Lab, task: Path, out: Path, *more: object) -> list[object]:
    return [
        *("distill", task, "--config", lab.root / "run.yaml", "--candidate", "A"),
        *("--out", out, *WARM, *QUICK, *more),
    ]


class Stopped(BaseException):
    """Ends a run as a signal would."""


# -- what is learned -----------------------------------------------------------------------------
@pytest.mark.parametrize("more", [["--full"], ["--keep-cut"], ["--min-score", "0.3"]])
def test_the_candidate_learns_just_what_the_pool_wrote(
    lab: Lab, task: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    given: dict[str, Any] = {}

    def learn(model: Any, examples: Any, out: Path, config: TrainConfig, **_: Any) -> None:
        given.update(model=model, examples=examples, out=out, config=config)
        raise Stopped

    monkeypatch.setattr(distillation, "finetune_completions", learn)
    out, policy = tmp_path / "D", ["--schedule", "F,P,F,P,A,A", "--final-prompt", " answer is"]
    with pytest.raises(Stopped):
        own = ["--metric", METRIC, "--seed", "3", "--train-schedule", "cosine", *more]
        run(*command(lab, task, out, *policy, *own))
    assert (given["model"].name, given["out"]) == ("A", out / "model")
    method = "full" if "--full" in more else "lora"
    assert given["config"] == TrainConfig(
        method=method, epochs=2, batch_size=8, learning_rate=0.01, seed=3, schedule="cosine"
    )
    # The answers are those of `generate`, to the byte.
    plain = ["generate", "--config", lab.root / "run.yaml", "-f", task, *WARM, *policy]
    assert run(*plain, "--seed", "3", "-o", tmp_path / "plain.jsonl") == 0
    assert (out / "outputs.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()

    tokenizer = AutoTokenizer.from_pretrained(lab.paths["A"])
    expected, reasons = [], set()
    for line in lines_of(out / "outputs.jsonl"):
        answer = line["completion"]
        ended = answer["finish_reason"] == "eos"
        reasons.add(answer["finish_reason"])
        if not ended and "--keep-cut" not in more:
            continue
        if "--min-score" in more and vowels(answer["text"], {}) < 0.3:
            continue
        turns = [{"role": "user", "content": line["input"]}]
        prompt = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        ids = [token for segment in answer["segments"] for token in segment["token_ids"]]
        assert any(segment["candidate"] == "(forced)" for segment in answer["segments"])
        end = [tokenizer.eos_token_id] if ended else []
        expected.append((tuple(prompt), (*ids, *end)))
    assert reasons == {"eos", "length"}
    assert [(e.prompt, e.completion) for e in given["examples"]] == expected
    assert 1 < len(expected) < 24 or "--keep-cut" in more
    assert len({example.group for example in given["examples"]}) == len(expected)


def test_the_best_share_of_the_answers(lab: Lab, task: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "D"
    more = ["--metric", METRIC, "--keep-best", "0.25", "--keep-cut", "--limit", "20"]
    assert run(*command(lab, task, out, *more)) == 0
    report = json.loads((out / "distillation.json").read_text())["distillation"]
    scores = [vowels(line["completion"]["text"], {}) for line in lines_of(out / "outputs.jsonl")]
    assert json.loads((out / "scores.json").read_text())["scores"] == scores
    best = sorted(scores, reverse=True)[:5]
    assert (report["answers"], report["cut"], report["kept"]) == (20, 0, 5)
    assert report["score"] == pytest.approx(sum(scores) / 20)
    assert report["score_kept"] == pytest.approx(sum(best) / 5)
    assert report["score_kept"] > report["score"]
    assert report["training"]["train_examples"] + report["training"]["validation_examples"] == 5


# -- the whole command ---------------------------------------------------------------------------
def test_report_card_and_model(
    lab: Lab, task: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out, test = tmp_path / "D", write_task(tmp_path / "test.jsonl", 10, "minus")
    base = ["--switcher", lab.paths["A"], "--select", "argmax", "--metric", METRIC]
    assert run(*command(lab, task, out, *base, "--test", test, "--keep-cut")) == 0
    shown = capsys.readouterr()
    assert "24 of 24 answers learned" in shown.err and "positions a token" in shown.out
    found = json.loads((out / "distillation.json").read_text())["test"]
    means, costs = {}, {}
    for method in ("pool", "before", "after"):
        done = [line["completion"] for line in lines_of(out / f"test-{method}.jsonl")]
        assert len(done) == 10
        means[method] = sum(vowels(one["text"], {}) for one in done) / 10
        tokens = sum(len(s["token_ids"]) for one in done for s in one["segments"])
        usage = [use for one in done for use in one["usage"].values()]
        positions = sum(u["prefill_positions"] + u["decode_positions"] for u in usage)
        costs[method] = positions / tokens
        assert found["score"][method]["mean"] == pytest.approx(means[method])
        assert found["cost"][method]["tokens"] == tokens
        assert found["cost"][method]["positions_per_token"] == pytest.approx(costs[method])
        assert found["cost"][method]["seconds_per_response"] > 0
    assert set(found["cost"]["pool"]["models"]) > {"switcher"}
    assert set(found["cost"]["after"]["models"]) == {"A"}
    ratio = found["cost"]["after_to_pool"]["positions_per_token"]
    assert ratio == pytest.approx(costs["after"] / costs["pool"])
    assert ratio < 1
    gain = means["pool"] - means["before"]
    assert found["gain"]["pool"]["mean"] == pytest.approx(gain)
    if gain > 0:
        assert found["gain_kept"] == pytest.approx((means["after"] - means["before"]) / gain)
        assert "gain kept: " in shown.out
    else:
        assert found["gain_kept"] is None and "no gain to keep" in shown.out

    # The tuned candidate is an ordinary adapter, and has learned something.
    alone = ["--temperature", "1", "--top-p", "1", "--max-new-tokens", "28"]
    again = tmp_path / "again.jsonl"
    model = ["-c", f"A={out / 'model'}", "--speaker", "A"]
    assert run("generate", *model, *alone, "-f", test, "-o", again) == 0
    texts = [line["completion"]["text"] for line in lines_of(again)]
    assert texts == [line["completion"]["text"] for line in lines_of(out / "test-after.jsonl")]
    assert texts != [line["completion"]["text"] for line in lines_of(out / "test-before.jsonl")]
    card = (out / "model" / "README.md").read_text()
    for fact in ("task.jsonl, 24 queries", METRIC, "argmax", "24 of 24 answers", "LoRA"):
        assert fact in card
    assert all(f"`{path}`" in card for path in lab.paths.values())


def test_all_weights_and_a_pool_of_one(lab: Lab, task: Path, tmp_path: Path) -> None:
    config = lab_config(lab).model_copy(update={"candidates": lab_config(lab).candidates[:1]})
    config = config.model_copy(update={"max_new_tokens": 6})
    items = distillation_items(task)
    calls: list[tuple[str, int, int]] = []
    report = distillation.distill(
        config,
        items,
        MetricScorer("vowels", vowels, "v1"),
        "P",
        tmp_path / "D",
        DistillConfig(keep_cut=True),
        TrainConfig(method="full", epochs=1, validation_share=0),
        progress=lambda *told: calls.append(told),
    )
    assert report.kept == 24 and report.encoded == 0 and report.training.left_out == 0
    assert (tmp_path / "D" / "model" / "config.json").is_file()
    assert ("answers", 24, 24) in calls and ("training", 1, 1) in calls
    tuned = distillation.distilled_candidate(config, "P", tmp_path / "D")
    assert tuned.prompt == config.candidates[0].prompt
    found = distillation.evaluate(
        config, items[:3], MetricScorer("vowels", vowels, "v1"), "P", tmp_path / "D"
    )
    # One candidate in turns writes as it does alone.
    assert found["gain"]["pool"]["mean"] == 0.0 and found["gain_kept"] is None


def distillation_items(path: Path) -> list[Any]:
    from antiphon.evaluation.generation import read_items

    return read_items(path)


# -- interrupted ---------------------------------------------------------------------------------
def test_killed_while_answering_and_resumed_gives_the_same_bytes(
    lab: Lab, tmp_path: Path, run: Run
) -> None:
    task = write_task(tmp_path / "task.jsonl", 150)
    test = write_task(tmp_path / "test.jsonl", 6, "minus")
    more = ["--metric", "token_f1", "--test", test, "--keep-cut", "--batch-rows", "2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*command(lab, task, whole, *more)) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "antiphon.cli.main", *map(str, command(lab, task, killed, *more))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    answers = killed / "outputs.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not answers.exists() or answers.read_bytes().count(b"\n") < 4:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 4 <= answers.read_bytes().count(b"\n") < 150
    with answers.open("ab") as file:
        file.write(b'{"torn')
    assert run(*command(lab, task, killed, *more)) == 0
    for name in (
        "outputs.jsonl",
        "scores.json",
        "model/adapter_model.safetensors",
        "test-pool.jsonl",
        "test-before.jsonl",
        "test-after-scores.json",
    ):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    timed = json.loads((killed / "outputs.jsonl.run.json").read_text())["timed"]
    assert 0 < timed <= 150


def test_what_is_finished_is_not_computed_again(
    lab: Lab, task: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, test = tmp_path / "D", write_task(tmp_path / "test.jsonl", 4, "minus")
    full = command(lab, task, out, "--metric", METRIC, "--test", test, "--keep-cut")
    train, load = distillation.finetune_completions, "antiphon.backends.loading.Loader.load"

    def interrupted(*given: Any, **options: Any) -> Any:
        def told(stage: str, done: int, total: int) -> None:
            if done > 3:  # behind the first evaluation
                raise Stopped

        return train(*given, **{**options, "progress": told})

    monkeypatch.setattr(distillation, "finetune_completions", interrupted)
    with pytest.raises(Stopped):
        run(*full)
    assert (out / "model" / "checkpoints").is_dir()
    monkeypatch.setattr(distillation, "finetune_completions", train)
    with monkeypatch.context() as patched:
        patched.setattr(load, None)  # would raise if called: answers are there
        assert run(*full[:-3], "--keep-cut") == 0
    fresh = tmp_path / "fresh"
    assert run(*command(lab, task, fresh, "--metric", METRIC, "--keep-cut")) == 0
    weights = "model/adapter_model.safetensors"
    assert (out / weights).read_bytes() == (fresh / weights).read_bytes()
    assert run(*full) == 0  # now with the test
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(load, None)
    scored: list[str] = []

    def no_scores(_: Any, texts: list[str], __: Any) -> list[float]:
        scored.extend(texts)
        return [0.0] * len(texts)

    monkeypatch.setattr(MetricScorer, "score", no_scores)
    assert run(*full) == 0
    assert not any(scored)  # empty answers are tried out before anything is computed
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


# -- bad input -----------------------------------------------------------------------------------
Fails = Callable[..., str]


@pytest.fixture
def fails(
    lab: Lab,
    task: Path,
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Fails:
    """Runs the command with more flags; returns what it says when it refuses to load a model."""
    monkeypatch.setattr("antiphon.backends.loading.Loader.load", None)

    def call(*more: object, metric: object = METRIC) -> str:
        out = tmp_path / "D"
        given = ["--metric", metric] if metric else []
        base = [*("distill", task, "--config", lab.root / "run.yaml", "--out", out), *given]
        capsys.readouterr()
        assert run(*base, *more) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert not (out / "model").exists()
        answers = out / "outputs.jsonl"
        assert not answers.exists() or not answers.read_bytes()
        return said

    return call


def test_names_metrics_and_filters(fails: Fails, tmp_path: Path) -> None:
    said = fails("--candidate", "AA")
    assert "no candidate 'AA'" in said and "A, F, P" in said
    assert "names no candidate to learn" in fails()
    assert "'A' and 'P'" in fails("--candidate", "A", "--candidate", "P")
    assert "needs a metric" in fails("--candidate", "A", metric=None)
    assert "did you mean 'contains'" in fails("--candidate", "A", metric="contain")
    assert "both of metric" in fails("--candidate", "A", "--reward-model", tmp_path)
    assert "two filters" in fails("--candidate", "A", "--min-score", "1", "--keep-best", "0.5")
    assert "no answer can score 2" in fails("--candidate", "A", "--min-score", "2")
    assert "--limit is 0" in fails("--candidate", "A", "--limit", "0")
    assert "cannot be split" in fails("--candidate", "A", "--limit", "1")
    assert "`lora_rank`" in fails("--candidate", "A", "--lora-rank", "0")
    assert "did you mean 'uniform'" in fails("--candidate", "A", "--policy", "unifrom")
    (tmp_path / "D2").write_text("", encoding="utf-8")
    assert "cannot be written" in fails("--candidate", "A", "--out", tmp_path / "D2")


def test_items_that_cannot_be_scored_and_tests_that_were_learned(
    fails: Fails, task: Path, tmp_path: Path
) -> None:
    test = tmp_path / "test.jsonl"
    learned = task.read_text(encoding="utf-8").splitlines()
    test.write_text("\n".join([*learned[:5], '{"input": "new"}']) + "\n", encoding="utf-8")
    base = ["--candidate", "A"]
    assert "5 of 6 test queries" in fails(*base, "--test", test)
    assert "item 6 ('new') lacks the field 'answer'" in fails(
        *base, "--test", test, "--allow-overlap", metric="token_f1"
    )
    test.write_text(json.dumps({"input": "QZB " * 700}) + "\n", encoding="utf-8")
    assert "test prompt 1 is" in fails(*base, "--test", test)
    test.write_text('{"input": 3}\n', encoding="utf-8")
    assert "line 1" in fails(*base, "--test", test)
    assert "failed on answer 1" in fails(*base, metric=f"{__name__}:broken")
    task.write_text('{"input": "a"}\n{"input": "b"}\n', encoding="utf-8")
    assert "item 1 ('a') lacks the field 'answer'" in fails(*base, metric="token_f1")


def test_adapters_without_a_base_and_switchers_of_other_pools(
    fails: Fails, lab: Lab, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    gone = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "gone")}
    (adapter / "adapter_config.json").write_text(json.dumps(gone), encoding="utf-8")
    for name in ("A", "P"):  # the one that learns, and another
        said = fails("-c", f"A={adapter}", "-c", f"P={lab.paths['P']}", "--candidate", name)
        assert "names the base" in said and "which is not there" in said
    switcher = tmp_path / "switcher"
    shutil.copytree(lab.paths["A"], switcher)
    for card, reason in (
        ({"kind": "lm", "candidates": ["P", "A"], "labels": ["0", "1"]}, "2 candidates"),
        ({"kind": "lm", "names": ["P", "F", "A"]}, "does not describe a switcher"),
    ):
        (switcher / "switcher.json").write_text(json.dumps(card), encoding="utf-8")
        assert reason in fails("--candidate", "A", "--switcher", switcher)


def test_an_empty_rest_may_be_filtered_again(
    lab: Lab, task: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "D"
    base = command(lab, task, out, "--metric", METRIC, "--keep-cut")
    assert run(*base, "--min-score", "1") == 2
    said = capsys.readouterr().err
    assert "none of 24 answers scores at least 1: " in said and "--min-score" in said
    before, items = (out / "outputs.jsonl").stat(), task.read_text(encoding="utf-8")
    task.write_text(items.replace("four", "five"), encoding="utf-8")
    assert run(*base, "--min-score", "0.1") == 2
    assert "result 1 of" in (said := capsys.readouterr().err) and "--out," in said
    task.write_text(items, encoding="utf-8")
    assert run(*base, "--min-score", "0.1") == 0
    assert (out / "outputs.jsonl").stat().st_mtime_ns == before.st_mtime_ns


def test_a_directory_of_another_distillation(
    lab: Lab, task: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "D"
    base = command(lab, task, out, "--metric", METRIC, "--keep-cut", "--batch-rows", "8")
    assert run(*base) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for change, said in (
        (["--seed", "1"], "pool.config.seed: 0, now 1"),
        (["--policy", "round_robin"], "pool.config.policy.kind"),
        (["--min-score", "0.1"], "answers.min_score: null, now 0.1"),
        (["--epochs", "3"], "training.epochs: 2.0, now 3.0"),
        (["--limit", "8"], "queries: 24, now 8"),
        (["--metric", "token_f1"], "scorer"),
    ):
        capsys.readouterr()
        assert run(*base, *change) == 2
        assert said in capsys.readouterr().err
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    # Another filter needs another training, but not other answers; another seed needs both.
    answers, weights = out / "outputs.jsonl", out / "model" / "adapter_model.safetensors"
    written = answers.stat().st_mtime_ns
    assert run(*base, "--min-score", "0.1", "--overwrite") == 0
    assert answers.stat().st_mtime_ns == written
    assert weights.read_bytes() != before[weights]
    assert "those that score at least 0.1" in (out / "model" / "README.md").read_text()
    assert run(*base, "--seed", "1", "--overwrite") == 0
    assert answers.read_bytes() != before[answers]
    assert len(lines_of(answers)) == 24


def test_a_model_of_something_else_is_left_alone(
    lab: Lab, task: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "D"
    shutil.copytree(lab.paths["P"], out / "model")
    for more in ([], ["--overwrite"]):
        assert run(*command(lab, task, out, "--metric", METRIC, *more)) == 2
        assert "was not made by a distillation" in capsys.readouterr().err
    assert not (out / "outputs.jsonl").exists()
