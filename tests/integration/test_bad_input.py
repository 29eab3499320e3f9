"""Every mistake has its own message, exit code 2, and loses nothing that was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from antiphon.cli.main import main
from antiphon.lab.build import Lab


class Fails:
    """Runs `antiphon generate` on the lab; returns what it says on stderr when it fails."""

    def __init__(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        self.base = ["generate", "--config", str(lab.root / "run.yaml")]
        self.capsys = capsys

    def __call__(self, *arguments: str, config: bool = True) -> str:
        self.capsys.readouterr()
        assert main([*(self.base if config else self.base[:1]), *arguments]) == 2
        said = self.capsys.readouterr().err
        assert "Traceback" not in said
        return said

    def ok(self, *arguments: str) -> None:
        assert main([*self.base, *arguments]) == 0


@pytest.fixture
def fails(lab: Lab, capsys: pytest.CaptureFixture[str]) -> Fails:
    return Fails(lab, capsys)


def test_missing_model(fails: Fails, tmp_path: Path) -> None:
    said = fails("-c", f"P={tmp_path}/nowhere", "hi", config=False)
    assert "there is no directory" in said and "nowhere" in said


def test_unknown_config_key_has_a_suggestion(fails: Fails, tmp_path: Path) -> None:
    said = fails("--set", "segment_token=3", "hi")
    assert "unknown key `segment_token`" in said and "segment_tokens" in said
    said = fails("--set", "sampling.temprature=1", "hi")
    assert "did you mean 'temperature'" in said


def test_all_mistakes_at_once(fails: Fails) -> None:
    said = fails("--set", "seeed=1", "--set", "policy.kinds=lm", "--set", "max_new_tokens=0", "hi")
    assert "3 mistakes" in said
    assert all(part in said for part in ("seeed", "policy.kinds", "max_new_tokens"))


def test_malformed_jsonl_line_is_numbered(fails: Fails, tmp_path: Path) -> None:
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


def test_empty_prompt(fails: Fails, tmp_path: Path) -> None:
    assert "prompt 2 is empty" in fails("hi", " ")
    assert "prompt 1 is not UTF-8" in fails("caf\udce9")  # bytes that the shell passed on
    source = tmp_path / "prompts.txt"
    source.write_text("one\n\ntwo\n", encoding="utf-8")
    assert "line 2" in fails("-f", str(source))
    source.write_text("", encoding="utf-8")
    assert "no prompts" in fails("-f", str(source))


def test_prompt_longer_than_a_context_says_whose(fails: Fails, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    source = tmp_path / "long.jsonl"
    lines = [{"input": "short"}, {"input": "QZB " * 700}]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    said = fails("-f", str(source), "-o", str(out))
    assert "prompt 2" in said and "candidate 'P'" in said and "1024" in said
    assert out.read_bytes() == b""


def test_segment_of_zero_tokens(fails: Fails) -> None:
    assert "segment_tokens" in fails("--segment-tokens", "0", "hi")


def test_unknown_candidate_names(fails: Fails) -> None:
    assert "the pool does not have" in fails("--first", "Q", "hi")
    assert "the pool does not have" in fails("--policy", "fixed", "--speaker", "Pp", "hi")
    said = fails("--policy", "schedule", "--schedule", "P,B", "hi")
    assert "'B'" in said and "A, F, P" in said


def test_unknown_policy_and_boundary(fails: Fails) -> None:
    assert "did you mean 'uniform'" in fails("--policy", "unifrom", "hi")
    assert "did you mean 'sentence'" in fails("--boundary", "sentense", "hi")


def test_ids_demanded_of_a_pool_that_cannot_exchange_them(
    fails: Fails, lab: Lab, tmp_path: Path
) -> None:
    import shutil

    from transformers import AutoTokenizer

    other = tmp_path / "other"
    shutil.copytree(lab.paths["A"], other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.train_new_from_iterator(["some other text"], vocab_size=400).save_pretrained(other)
    pool = ["-c", f"A={lab.paths['A']}", "-c", f"B={other}"]
    said = fails(*pool, "--exchange", "ids", "hi", config=False)
    assert "cannot exchange token ids" in said and "--exchange text" in said


def test_unwritable_output(fails: Fails, tmp_path: Path) -> None:
    assert "is a directory" in fails("-o", str(tmp_path), "hi")
    assert "cannot be written" in fails("-o", "/proc/nowhere/out.jsonl", "hi")
    kept = tmp_path / "notes.txt"
    kept.write_text("my notes\n", encoding="utf-8")
    assert "not a result of this command" in fails("-o", str(kept), "hi")
    assert kept.read_text(encoding="utf-8") == "my notes\n"


def test_missing_config_and_broken_yaml(fails: Fails, tmp_path: Path) -> None:
    assert "cannot be read" in fails("--config", str(tmp_path / "no.yaml"), "hi", config=False)
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n", encoding="utf-8")
    assert "not valid YAML" in fails("--config", str(broken), "hi", config=False)
    broken.write_text("- 1\n", encoding="utf-8")
    assert "not keys and values" in fails("--config", str(broken), "hi", config=False)


def test_no_candidates_and_malformed_candidate(fails: Fails) -> None:
    assert "no candidates" in fails("hi", config=False)
    assert "NAME=MODEL" in fails("-c", "P", "hi", config=False)


def test_memory_budget_too_small(fails: Fails) -> None:
    assert "memory budget" in fails("--memory-gb", "0.0000001", "hi")


def test_not_a_lab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "report", str(tmp_path)]) == 2
    assert "is not a lab" in capsys.readouterr().err


def test_models_check_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "check", str(tmp_path / "nothing")]) == 2
    assert "there is no directory" in capsys.readouterr().err


def test_odd_json_is_refused_before_anything_is_computed(fails: Fails, tmp_path: Path) -> None:
    source = tmp_path / "odd.jsonl"
    for line, reason in (
        (b'{"input": "x", "note": "\\ud83d"}', "surrogate"),
        (b'{"input": "x", "score": NaN}', "NaN is no JSON"),
        (b'{"input": "x", "input": "y"}', "stands twice"),
        (b'{"input": "x", "n": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (b'{"input": ' + b"[" * 100_000, "not usable JSON"),
        (b'{"input": "caf\xe9"}', "not UTF-8"),
    ):
        source.write_bytes(b'{"input": "fine"}\n' + line + b"\n")
        said = fails("-f", str(source))
        assert "line 2" in said and reason in said, said


def test_a_byte_order_mark_and_other_line_separators_are_no_text(
    fails: Fails, lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "prompts.txt"
    source.write_bytes("\ufeffone\u2028still one\rand on\ntwo\r\n".encode())
    fails.ok("-f", str(source), "-o", "-")
    lines = [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
    assert [line["input"] for line in lines] == ["one\u2028still one\rand on", "two"]


def test_a_scalar_where_keys_belong(fails: Fails) -> None:
    assert "`policy` holds 'uniform'" in fails("--set", "policy=uniform", "hi")
    assert "`sampling` holds 3" in fails("--set", "sampling=3", "--temperature", "1", "hi")


def test_results_with_other_fields_are_not_mixed(fails: Fails, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": 1, "input": "x"}\n', encoding="utf-8")
    fails.ok("-f", str(source), "-o", str(out))
    source.write_text('{"id": 2, "input": "x"}\n', encoding="utf-8")
    assert "carries other fields" in fails("-f", str(source), "-o", str(out))


def test_overwrite_keeps_the_old_results_until_there_are_new_ones(
    fails: Fails, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    fails.ok("-o", str(out), "hi")
    before = out.read_bytes()
    assert "memory budget" in fails("-o", str(out), "--overwrite", "--memory-gb", "1e-7", "hi")
    assert out.read_bytes() == before
