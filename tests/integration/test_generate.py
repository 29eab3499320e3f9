"""`antiphon generate` as a person uses it: sources, outputs, resumption."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from antiphon.cli.main import main
from antiphon.lab.build import Lab
from antiphon.types import Completion

from .conftest import Ask


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def flags(lab: Lab, *more: str) -> list[str]:
    return ["generate", "--config", str(lab.root / "run.yaml"), *more]


def test_output_carries_fields_traces_and_usage(lab: Lab, questions: Ask, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    source = questions(5)
    switcher = ["--switcher", str(lab.paths["A"])]
    assert main(flags(lab, *switcher, "-f", str(source), "-o", str(out))) == 0
    lines = lines_of(out)
    assert [line["id"] for line in lines] == list(range(5))
    assert [line["input"] for line in lines] == [line["input"] for line in lines_of(source)]
    for line in lines:
        completion = line["completion"]
        assert "".join(s["text"] for s in completion["segments"]) == completion["text"]
        written = sum(len(s["token_ids"]) for s in completion["segments"])
        usage = completion["usage"]
        assert written == sum(u["tokens_written"] for u in usage.values()) > 0
        assert usage["switcher"]["decisions"] == len(completion["segments"])
        for segment in completion["segments"]:
            assert set(segment["probabilities"]) == {"P", "F", "A"}
            assert sum(segment["probabilities"].values()) == pytest.approx(1)
        assert isinstance(Completion.from_dict(completion), Completion)
    record = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert record["items"] == 5
    assert record["usage"]["switcher"]["seconds"] > 0


def test_finished_items_are_not_computed_again(
    lab: Lab, questions: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    command = flags(lab, "-f", str(questions(6)), "-o", str(out), "--batch-rows", "2")
    assert main(command) == 0
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]) + b'{"torn')
    assert main(command) == 0
    assert out.read_bytes() == whole
    assert json.loads((tmp_path / "out.jsonl.run.json").read_text())["resumed_from"] == 4
    monkeypatch.setattr("antiphon.backends.loading.Loader.load", None)  # would raise if called
    assert main(command) == 0
    assert out.read_bytes() == whole


def test_longer_input_goes_on_where_the_shorter_ended(
    lab: Lab, questions: Ask, tmp_path: Path
) -> None:
    out, fresh = tmp_path / "out.jsonl", tmp_path / "fresh.jsonl"
    options = ["--batch-rows", "2"]
    assert main(flags(lab, "-f", str(questions(4)), "-o", str(out), *options)) == 0
    assert main(flags(lab, "-f", str(questions(8)), "-o", str(out), *options)) == 0
    assert main(flags(lab, "-f", str(questions(8)), "-o", str(fresh), *options)) == 0
    assert out.read_bytes() == fresh.read_bytes()


def test_another_configuration_is_refused_and_nothing_is_lost(
    lab: Lab, questions: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    command = flags(lab, "-f", str(questions(3)), "-o", str(out))
    assert main(command) == 0
    before = out.read_bytes()
    for change in (["--seed", "1"], ["--segment-tokens", "3"], ["--policy", "round_robin"]):
        assert main([*command, *change]) == 2
        assert "was made by another run" in capsys.readouterr().err
        assert out.read_bytes() == before
    assert main([*command, "--batch-rows", "1", "--memory-gb", "1"]) == 0
    assert main([*command, "--seed", "1", "--overwrite"]) == 0
    assert [line["id"] for line in lines_of(out)] == [0, 1, 2]


def test_changed_weights_under_the_same_path_are_noticed(
    lab: Lab, questions: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "lab"
    shutil.copytree(lab.root, copy)
    out = tmp_path / "out.jsonl"
    command = ["generate", "--config", str(copy / "run.yaml"), "-f", str(questions(3))]
    assert main([*command, "-o", str(out)]) == 0
    shutil.copy(copy / "A" / "model.safetensors", copy / "F" / "model.safetensors")
    assert main([*command, "-o", str(out)]) == 2
    assert "was made by another run" in capsys.readouterr().err


def test_prompts_from_arguments_stdin_and_text_agree(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = ["What is QZB plus KXA?", "Tell me ABC."]
    text = tmp_path / "prompts.txt"
    text.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    outputs = []
    for given in (prompts, ["-f", str(text)], ["-"], []):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.read_bytes())))
        capsys.readouterr()
        assert main(flags(lab, "-o", "-", *given)) == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1
    assert len(outputs[0].splitlines()) == 2


def test_messages_and_input_are_both_understood(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "chat.jsonl"
    turn = {"role": "user", "content": "What is QZB plus KXA?"}
    items = [{"messages": [turn], "tag": "x"}, {"input": turn["content"]}]
    source.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    greedy_one = ["--policy", "fixed", "--speaker", "A"]
    assert main(flags(lab, *greedy_one, "-f", str(source), "-o", "-")) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["tag"] == "x"
    assert first["completion"]["text"] == second["completion"]["text"]


def test_the_default_view_shows_legend_traces_and_work(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(flags(lab, "What is QZB plus KXA?", "--policy", "schedule", "--schedule", "P,A")) == 0
    )
    shown = capsys.readouterr().out
    assert "who wrote what" in shown
    assert "[P]" in shown and "[A]" in shown
    assert "positions" in shown and "seconds" in shown


def test_killed_in_the_middle_and_resumed_gives_the_same_bytes(
    lab: Lab, questions: Ask, tmp_path: Path
) -> None:
    source = questions(120)
    common = ["-f", str(source), "--batch-rows", "8", "--max-new-tokens", "64"]
    common += ["--temperature", "0.7", "--switcher", str(lab.paths["A"]), "--no-progress"]
    whole = tmp_path / "whole.jsonl"
    run = [sys.executable, "-m", "antiphon.cli.main"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*run, *flags(lab, *common, "-o", str(whole))], check=True, env=environment, timeout=300
    )
    killed = tmp_path / "killed.jsonl"
    command = [*run, *flags(lab, *common, "-o", str(killed))]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not killed.exists() or killed.read_bytes().count(b"\n") < 24:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = killed.read_bytes().count(b"\n")
    assert 24 <= done < 120
    subprocess.run(command, check=True, env=environment, timeout=300)
    assert killed.read_bytes() == whole.read_bytes()
    record = json.loads((tmp_path / "killed.jsonl.run.json").read_text())
    assert record["resumed_from"] == done
