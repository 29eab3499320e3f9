"""Every mistake has its own message, exit code 2, and loses nothing that was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from antiphon.cli.main import main
from antiphon.lab.build import Lab


@pytest.fixture
def fails(lab: Lab, capsys: pytest.CaptureFixture[str]):
    """Runs `antiphon generate` on the lab and returns what it says on stderr."""

    def run(*arguments: str, config: bool = True) -> str:
        base = ["generate", "--config", str(lab.root / "run.yaml")] if config else ["generate"]
        capsys.readouterr()
        assert main([*base, *arguments]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    return run


def test_missing_model(fails, tmp_path: Path) -> None:
    said = fails("-c", f"P={tmp_path}/nowhere", "hi", config=False)
    assert "there is no directory" in said and "nowhere" in said


def test_unknown_config_key_has_a_suggestion(fails, tmp_path: Path) -> None:
    said = fails("--set", "segment_token=3", "hi")
    assert "unknown key `segment_token`" in said and "segment_tokens" in said
    said = fails("--set", "sampling.temprature=1", "hi")
    assert "did you mean 'temperature'" in said


def test_all_mistakes_at_once(fails) -> None:
    said = fails("--set", "seeed=1", "--set", "policy.kinds=lm", "--set", "max_new_tokens=0", "hi")
    assert "3 mistakes" in said
    assert all(part in said for part in ("seeed", "policy.kinds", "max_new_tokens"))


def test_malformed_jsonl_line_is_numbered(fails, tmp_path: Path) -> None:
    source = tmp_path / "bad.jsonl"
    for line, reason in (
        ('{"input": "x"', "not valid JSON"),
        ("[1]", "JSON list"),
        ('{"text": "x"}', "either `input` or `messages`"),
        ('{"input": 3}', "no string"),
        ('{"input": "  "}', "empty `input`"),
        ('{"messages": []}', "empty one"),
        ('{"messages": [{"role": "user"}]}', "without a `role` and a `content`"),
        ('{"input": "x", "completion": 1}', "field 'completion'"),
    ):
        source.write_text('{"input": "fine"}\n' + line + "\n", encoding="utf-8")
        said = fails("-f", str(source))
        assert "line 2" in said and reason in said


def test_empty_prompt(fails, tmp_path: Path) -> None:
    assert "prompt 2 is empty" in fails("hi", " ")
    source = tmp_path / "prompts.txt"
    source.write_text("one\n\ntwo\n", encoding="utf-8")
    assert "line 2" in fails("-f", str(source))
    source.write_text("", encoding="utf-8")
    assert "no prompts" in fails("-f", str(source))


def test_prompt_longer_than_a_context_says_whose(fails, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    source = tmp_path / "long.jsonl"
    lines = [{"input": "short"}, {"input": "QZB " * 700}]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    said = fails("-f", str(source), "-o", str(out))
    assert "prompt 2" in said and "candidate 'P'" in said and "1024" in said
    assert out.read_bytes() == b""


def test_segment_of_zero_tokens(fails) -> None:
    assert "segment_tokens" in fails("--segment-tokens", "0", "hi")


def test_unknown_candidate_names(fails) -> None:
    assert "the pool does not have" in fails("--first", "Q", "hi")
    assert "the pool does not have" in fails("--policy", "fixed", "--speaker", "Pp", "hi")
    said = fails("--policy", "schedule", "--schedule", "P,B", "hi")
    assert "'B'" in said and "A, F, P" in said


def test_unknown_policy_and_boundary(fails) -> None:
    assert "did you mean 'uniform'" in fails("--policy", "unifrom", "hi")
    assert "did you mean 'sentence'" in fails("--boundary", "sentense", "hi")


def test_ids_demanded_of_a_pool_that_cannot_exchange_them(fails, lab: Lab, tmp_path: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    other = tmp_path / "other"
    shutil.copytree(lab.paths["A"], other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.train_new_from_iterator(["some other text"], vocab_size=400).save_pretrained(other)
    pool = ["-c", f"A={lab.paths['A']}", "-c", f"B={other}"]
    said = fails(*pool, "--exchange", "ids", "hi", config=False)
    assert "cannot exchange token ids" in said and "--exchange text" in said


def test_unwritable_output(fails, tmp_path: Path) -> None:
    assert "is a directory" in fails("-o", str(tmp_path), "hi")
    assert "cannot be written" in fails("-o", "/proc/nowhere/out.jsonl", "hi")
    kept = tmp_path / "notes.txt"
    kept.write_text("my notes\n", encoding="utf-8")
    assert "not a result of this command" in fails("-o", str(kept), "hi")
    assert kept.read_text(encoding="utf-8") == "my notes\n"


def test_missing_config_and_broken_yaml(fails, tmp_path: Path) -> None:
    assert "cannot be read" in fails("--config", str(tmp_path / "no.yaml"), "hi", config=False)
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n", encoding="utf-8")
    assert "not valid YAML" in fails("--config", str(broken), "hi", config=False)
    broken.write_text("- 1\n", encoding="utf-8")
    assert "not keys and values" in fails("--config", str(broken), "hi", config=False)


def test_no_candidates_and_malformed_candidate(fails) -> None:
    assert "no candidates" in fails("hi", config=False)
    assert "NAME=MODEL" in fails("-c", "P", "hi", config=False)


def test_memory_budget_too_small(fails) -> None:
    assert "memory budget" in fails("--memory-gb", "0.0000001", "hi")


def test_not_a_lab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "report", str(tmp_path)]) == 2
    assert "is not a lab" in capsys.readouterr().err


def test_models_check_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "check", str(tmp_path / "nothing")]) == 2
    assert "there is no directory" in capsys.readouterr().err
