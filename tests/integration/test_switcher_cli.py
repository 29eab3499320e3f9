"""`antiphon switcher` as a person uses it: collecting, going on, training; every mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from antiphon.cli.main import main
from antiphon.lab.build import Lab

METRICS = '''
def likeness(text, fields):
    """How much of an answer are capital letters, and a little for its length."""
    return (sum(c.isupper() for c in text) + min(len(text), 40) / 40) / (len(text) + 1)

def nan(text, fields):
    return float("nan")

def nan_later(text, fields):
    return float("nan") if text and fields["id"] >= 2 else likeness(text, fields)

def too_much(text, fields):
    return 1.5

def no_number(text, fields):
    return "good"

def fails(text, fields):
    return fields["nothing"]

def same(text, fields):
    return 0.5

likeness.needs = "answer"
not_a_function = 3
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of metrics."""
    (tmp_path / "scores_of_mine.py").write_text(METRICS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("scores_of_mine", None)


def task(place: Path, count: int = 4, name: str = "task.jsonl", **fields: Any) -> Path:
    """A task file."""
    keys = ("KXA", "KXAKXA", "VLHRMVQZB")
    more = fields or {"answer": "42"}
    lines = [
        {"id": i, "input": f"What is QZB plus {keys[i % 3]}{i}?", **more} for i in range(count)
    ]
    (place / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place / name


QUICK = ["--completions", "2", "--temperature", "1", "--batch-instances", "2"]
SCORED = ["--metric", "scores_of_mine:likeness"]


def collect(lab: Lab, source: Path, out: Path, *more: str) -> list[str]:
    config = ["--config", str(lab.root / "run.yaml")]
    return ["switcher", "collect", *config, str(source), "--out", str(out), *QUICK, *more]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows_of(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store / "instances.jsonl").read_text().splitlines()]


# -- the way it is meant -----------------------------------------------------------------------
def test_collect_train_and_decode(
    lab: Lab, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, store, head = task(place, 8), place / "store", place / "head"
    assert main(collect(lab, source, store, *SCORED, "--traces", "2")) == 0
    said = capsys.readouterr().err
    assert "instances: 0 of 16" in said and "instances: 16 of 16" in said
    assert f"16 instances in {store}" in said
    assert "completions" in said and f"next: antiphon switcher train {store} --out" in said
    rows = rows_of(store)
    assert [row["id"] for row in rows] == [f"{n // 8}/{n % 8}" for n in range(16)]
    assert all(row["candidates"] == ["P", "F", "A"] for row in rows)
    ended = [zip(row["ended"], row["completions"], strict=True) for row in rows]
    assert all(count == (1 if end else 2) for pairs in ended for end, count in pairs)
    assert {path.name for path in store.iterdir()} == {"store.json", "instances.jsonl", "README.md"}

    command = ["switcher", "train", str(store), "--out", str(head), "--kind", "hidden"]
    assert main([*command, "--epochs", "2", "--tolerance", "0", "--seed", "1"]) == 0
    said = capsys.readouterr().err
    assert "reading traces: 1" in said and "training the head: 2 of 2" in said
    assert "--switcher" in said
    card = json.loads((head / "switcher.json").read_text())
    assert (card["kind"], card["candidates"]) == ("hidden", ["P", "F", "A"])
    assert card["trained_on"][0]["metric"] == "scores_of_mine:likeness"

    out = place / "out.jsonl"
    generate = ["generate", "--config", str(lab.root / "run.yaml"), "-f", str(source)]
    assert main([*generate, "--switcher", str(head), "-o", str(out), "--no-progress"]) == 0
    for line in out.read_text().splitlines():
        done = json.loads(line)["completion"]
        assert done["usage"]["switcher"]["decisions"] == len(done["segments"])
        assert all(set(s["probabilities"]) == {"P", "F", "A"} for s in done["segments"])
    # The same, with a candidate that it may not choose.
    leave = ["--set", "policy.without=[P]", "-o", str(place / "no P.jsonl"), "--no-progress"]
    assert main([*generate, "--switcher", str(head), *leave]) == 0
    for line in (place / "no P.jsonl").read_text().splitlines():
        assert all(s["candidate"] != "P" for s in json.loads(line)["completion"]["segments"])


def test_an_lm_switcher_is_trained_and_used(
    lab: Lab, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    store, switcher = place / "store", place / "switcher"
    assert main(collect(lab, task(place, 8), store, *SCORED)) == 0
    command = ["switcher", "train", str(store), "--out", str(switcher), "--tolerance", "0"]
    assert main([*command, "--max-steps", "2", "--batch-size", "4"]) == 0
    card = json.loads((switcher / "switcher.json").read_text())
    assert (card["kind"], card["labels"]) == ("lm", ["0", "1", "2"])
    assert "Started from" in (switcher / "README.md").read_text(encoding="utf-8")
    generate = ["generate", "--config", str(lab.root / "run.yaml"), "--switcher", str(switcher)]
    assert main([*generate, "-o", "-", "hi"]) == 0
    capsys.readouterr()
    pool = ["-c", f"P={lab.paths['P']}", "-c", f"A={lab.paths['A']}"]
    assert main(["generate", *pool, "--switcher", str(switcher), "hi"]) == 2
    assert "trained for 3 candidates (P, F, A)" in capsys.readouterr().err


def test_a_run_file_for_generate_serves_for_collecting(lab: Lab, place: Path) -> None:
    """Its policy and its batches are left aside; flags and --set override the rest."""
    config = place / "run.yaml"
    text = (lab.root / "run.yaml").read_text().replace("model: ", f"model: {lab.root}/")
    config.write_text(f"{text}batch_rows: 7\nmetric: final_number\ncompletions: 5\nseed: 3\n")
    command = ["switcher", "collect", str(task(place)), "--out", str(place / "store")]
    command += [
        "--config",
        str(config),
        "--completions",
        "1",
        "--set",
        "cut_low=0.3",
        "--limit",
        "2",
    ]
    assert main([*command, "--final-prompt", " so", "--last", "A"]) == 0
    about = json.loads((place / "store" / "store.json").read_text())
    settings = about["fingerprint"]["config"]
    assert (settings["completions"], settings["cut_low"], settings["seed"]) == (1, 0.3, 3)
    assert (settings["last"], settings["final_prompt"]) == ("A", " so")
    assert "policy" not in settings and "batch_rows" not in settings
    assert about["scorer"] == {"name": "final_number", "low": 0.0, "high": 1.0}
    assert len(rows_of(place / "store")) == 2


# -- killed, and run again ---------------------------------------------------------------------
def test_what_is_there_is_not_computed_again(
    lab: Lab, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = place / "store"
    command = collect(lab, task(place, 6), store, *SCORED)
    assert main(command) == 0
    whole = files_of(store)
    rows = store / "instances.jsonl"
    rows.write_bytes(b"".join(whole["instances.jsonl"].splitlines(keepends=True)[:4]) + b'{"torn')
    (store / "README.md").unlink()
    assert main(command) == 0
    assert files_of(store) == whole
    monkeypatch.setattr("antiphon.backends.loading.Loader.load", None)  # would raise if called
    capsys.readouterr()
    assert main([*command, "--memory-gb", "1"]) == 0
    assert files_of(store) == whole
    assert "6 instances in" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], ["--adaptive", "--completions", "8"]], ids=["plain", "adaptive"]
)
def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(
    lab: Lab, place: Path, more: list[str]
) -> None:
    source = task(place, 60)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(out: Path) -> list[str]:
        run = [sys.executable, "-m", "antiphon.cli.main"]
        return [*run, *collect(lab, source, out, *SCORED, *more)]

    whole, killed = place / "whole", place / "killed"
    subprocess.run(command(whole), check=True, env=environment, timeout=300)
    process = subprocess.Popen(command(killed), env=environment, stderr=subprocess.DEVNULL)
    rows = killed / "instances.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not rows.exists() or rows.read_bytes().count(b"\n") < 8:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 8 <= rows.read_bytes().count(b"\n") < 60
    subprocess.run(command(killed), check=True, env=environment, timeout=300)
    for name in ("instances.jsonl", "README.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


# -- mistakes ----------------------------------------------------------------------------------
Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that is refused; returns what it says: a line, and a line what to do."""

    def run(*command: str) -> str:
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr().err
        message, remedy = said.splitlines()
        assert message.startswith("antiphon: error: ")
        assert remedy.startswith("  -> ")
        assert len(remedy) > 12
        return message + "\n" + remedy

    return run


def test_what_cannot_be_collected(lab: Lab, place: Path, fails: Fails) -> None:
    out, source = place / "store", task(place)
    pool = [str(lab.paths[name]) for name in "PA"]
    adapter = place / "adapter"
    adapter.mkdir()
    settings = {"base_model_name_or_path": str(place / "gone"), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    one = ["switcher", "collect", str(source), "--out", str(out), "-c", f"P={pool[0]}"]

    def config(*more: str) -> list[str]:
        return collect(lab, source, out, *more)

    def mine(name: str) -> list[str]:
        return config("--metric", f"scores_of_mine:{name}")

    cases: list[tuple[list[str], str]] = [
        ([*one, *SCORED], "the pool has 1"),
        (one[:-2], "no candidates were given"),
        ([*one, "-c", f"X={adapter}", *SCORED], "names the base"),
        ([*one, "-c", f"X={place}/nowhere", *SCORED], "there is no directory"),
        (config(), "needs a metric"),
        (config("--metric", "exact_macth"), "did you mean 'exact_match'"),
        (config(*SCORED, "--reward-model", pool[0]), "both of metric and reward model"),
        (config("--metric", "nothing_here:f"), "there is no module"),
        (mine("not_a_function"), "cannot be called"),
        (mine("nan"), "a score is finite"),
        (mine("too_much"), "its scores lie from 0 to 1"),
        (mine("no_number"), "a score is a number"),
        (mine("fails"), "failed on answer 1"),
        (config(*SCORED, "--limit", "0"), "--limit is 0"),
        (config(*SCORED, "--boundary", "sentense"), "did you mean 'sentence'"),
        (config(*SCORED, "--threads", "0"), "--threads is 0"),
        (config(*SCORED, "--config", str(place / "no.yaml")), "cannot be read"),
    ]
    for command, said in cases:
        assert said in fails(*command), said
        assert not out.exists(), said


def test_mistakes_in_a_configuration_are_listed(
    lab: Lab, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = collect(lab, task(place), place / "store", *SCORED)
    assert main([*command, "--set", "completion=3", "--set", "traces=0"]) == 2
    said = capsys.readouterr().err
    assert "2 mistakes" in said and "did you mean 'completions'" in said and "`traces`" in said
    assert main([*command, "--cut-low", "0.9", "--cut-high", "0.2"]) == 2
    assert "`cut_low` 0.9 is above `cut_high` 0.2" in capsys.readouterr().err
    assert not (place / "store").exists()


def test_a_task_without_what_the_metric_needs(lab: Lab, place: Path, fails: Fails) -> None:
    out = place / "store"
    without = task(place, name="without.jsonl", solution=1)
    for metric in (*SCORED[1:], "exact_match"):
        said = fails(*collect(lab, without, out, "--metric", metric))
        assert "item 1 ('What is QZB plus KXA0?') lacks the field 'answer'" in said
    odd = task(place, name="odd.jsonl", answer={"a": 1})
    assert "cannot compare" in fails(*collect(lab, odd, out, "--metric", "exact_match"))
    (place / "broken.jsonl").write_text('{"input": "x", "answer": "1"}\n{"input": \n')
    assert "line 2" in fails(*collect(lab, place / "broken.jsonl", out, *SCORED))
    assert "cannot be read" in fails(*collect(lab, place / "none.jsonl", out, *SCORED))
    assert not out.exists()


def test_a_score_that_turns_bad_later_keeps_what_was_saved(
    lab: Lab, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "store"
    assert main(collect(lab, task(place), out, "--metric", "scores_of_mine:nan_later")) == 2
    said = capsys.readouterr().err
    assert "'scores_of_mine:nan_later' scored answer" in said and "nan; a score is finite" in said
    assert "Traceback" not in said
    assert [row["id"] for row in rows_of(out)] == ["0/0", "0/1"]


def test_a_prompt_that_is_too_long_is_found_before_the_first_is_computed(
    lab: Lab, place: Path, fails: Fails
) -> None:
    source, out = task(place), place / "store"
    with source.open("a") as file:
        file.write(json.dumps({"id": 9, "input": "QZB " * 700, "answer": "1"}) + "\n")
    said = fails(*collect(lab, source, out, *SCORED))
    assert "prompt 5" in said and "candidate 'P'" in said and "1024" in said
    assert rows_of(out) == []
    # A store without a row is nobody's: the mended command can go on in it.
    assert main(collect(lab, source, out, *SCORED, "--limit", "2")) == 0
    assert len(rows_of(out)) == 2


def test_a_memory_budget_that_holds_no_rollout(
    lab: Lab, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "store"
    assert main(collect(lab, task(place), out, *SCORED, "--memory-gb", "1e-7")) == 2
    said = capsys.readouterr().err
    assert "one completion of each of 3 branches" in said and "key-value caches" in said
    assert main(collect(lab, task(place), out, *SCORED, "--memory-gb", "1")) == 0


def test_a_store_of_another_run(lab: Lab, place: Path, fails: Fails) -> None:
    out, source = place / "store", task(place)
    assert main(collect(lab, source, out, *SCORED)) == 0
    before = files_of(out)
    changed = task(place, name="changed.jsonl", answer="43")
    swapped = ["-c", f"A={lab.paths['A']}", "-c", f"P={lab.paths['P']}"]
    for command, said in (
        (collect(lab, source, out, *SCORED, "--completions", "3"), "completions: 2, now 3"),
        (collect(lab, source, out, *SCORED, "--segment-tokens", "5"), "segment_tokens: 4, now 5"),
        (collect(lab, source, out, *SCORED, "--adaptive"), "adaptive: false, now true"),
        (collect(lab, source, out, "--metric", "contains"), 'metric: "scores_of_mine:likeness"'),
        (collect(lab, changed, out, *SCORED), "items: "),
        (collect(lab, source, out, *SCORED, *swapped), "candidates"),
    ):
        shown = fails(*command)
        assert "was made otherwise" in shown and said in shown
        assert "--overwrite" in shown
        assert files_of(out) == before
    assert main(collect(lab, source, out, *SCORED, "--completions", "1", "--overwrite")) == 0
    assert rows_of(out)[0]["completions"] == [1, 1, 1]


def test_an_output_that_cannot_be_written(lab: Lab, place: Path, fails: Fails) -> None:
    source = task(place)
    (place / "file").write_text("mine")
    assert "cannot be written" in fails(*collect(lab, source, place / "file", *SCORED))
    assert (place / "file").read_text() == "mine"
    (place / "store").mkdir()
    (place / "store" / "instances.jsonl").write_text("my notes\n")
    assert "not a result" in fails(*collect(lab, source, place / "store", *SCORED))
    assert files_of(place / "store") == {"instances.jsonl": b"my notes\n"}


def test_what_cannot_be_trained(lab: Lab, place: Path, fails: Fails) -> None:
    source, store, out = task(place, 6), place / "store", place / "switcher"
    assert main(collect(lab, source, store, *SCORED)) == 0
    tied = place / "tied"
    assert main(collect(lab, source, tied, "--metric", "scores_of_mine:same")) == 0
    two = ["-c", f"P={lab.paths['P']}", "-c", f"A={lab.paths['A']}"]
    assert main(collect(lab, source, place / "two", *SCORED, *two)) == 0
    empty = place / "empty"
    shutil.copytree(store, empty)
    (empty / "instances.jsonl").write_bytes(b"")
    torn = place / "torn"
    shutil.copytree(store, torn)
    (torn / "instances.jsonl").write_text('{"id": 1}\n')

    def train(*stores: Path, more: tuple[str, ...] = ()) -> str:
        return fails("switcher", "train", *map(str, stores), "--out", str(out), *more)

    hidden = ("--kind", "hidden")
    for kind in ((), hidden):
        assert "is no rollout store" in train(place / "nowhere", more=kind)
        assert "is empty" in train(empty, more=kind)
        assert "row 1 of" in train(torn, more=kind)
        assert "all 6 instances of the store" in train(tied, more=kind)
        assert "different pools" in train(store, place / "two", more=kind)
        assert "different pools" in train(store, tied, place / "two", more=kind)
    for flags in (
        ("--lora-rank", "4"),
        ("--max-steps", "3"),
        ("--max-grad-norm", "0"),
        ("--model", str(lab.paths["A"])),
        ("--frame", "chat"),
        ("--full",),
        ("--gradient-checkpointing",),
    ):
        said = train(store, more=(*hidden, *flags))
        assert f"{flags[0]} is of no use with --kind hidden" in said
    for name, value in (("--hidden", "8"), ("--dropout", "0"), ("--batch-instances", "3")):
        assert f"{name} is of no use with --kind lm" in train(store, more=(name, value))
    assert "there is no directory" in train(store, more=("--model", str(place / "nowhere")))
    assert not out.exists()
    assert main(["switcher", "train", str(store), "--out", str(out), *hidden, "--epochs", "1"]) == 0
    before = files_of(out)
    assert "was made by another training" in train(store, more=(*hidden, "--epochs", "2"))
    assert files_of(out) == before


def test_a_switcher_for_three_is_not_used_with_two(
    lab: Lab, place: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, head = place / "store", place / "head"
    assert main(collect(lab, task(place, 4), store, *SCORED)) == 0
    train = ["switcher", "train", str(store), "--out", str(head), "--kind", "hidden"]
    assert main([*train, "--epochs", "1", "--tolerance", "0"]) == 0
    monkeypatch.setattr("antiphon.backends.loading.Loader.load", None)  # would raise if called
    pool = {name: f"{name}={path}" for name, path in lab.paths.items()}
    use = ["--switcher", str(head), "hi"]

    def generate(*names: str) -> list[str]:
        return ["generate", *(flag for name in names for flag in ("-c", pool[name]))]

    said = fails(*generate("P", "F"), *use)
    assert "trained for 3 candidates (P, F, A), and the pool has 2 (P, F)" in said
    assert "is not the model whose hidden states" in fails(*generate("P", "A", "F"), *use)
    lm = fails(*generate("P", "F", "A"), "--policy", "hidden", "--switcher", pool["A"][2:], "hi")
    assert "is no hidden-state switcher" in lm
