"""Results files: whole lines, in order, of one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from antiphon.errors import InputError
from antiphon.record import ResultsFile, digest, directory_fingerprint, write_json


def test_digests_do_not_depend_on_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_fingerprints_follow_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    before = directory_fingerprint(tmp_path)
    assert directory_fingerprint(tmp_path) == before
    (tmp_path / "a").write_text("y")
    changed = directory_fingerprint(tmp_path)
    (tmp_path / "b").write_text("")
    assert len({before, changed, directory_fingerprint(tmp_path)}) == 3


def test_a_torn_line_is_cut_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = ResultsFile(path, ["a", "b", "c"])
    file.append([{"run_key": "a", "text": "one\u2028two\x85"}, {"run_key": "b"}])
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"run_key": "c", "te')
    again = ResultsFile(path, ["a", "b", "c"])
    assert [line["run_key"] for line in again.lines] == ["a", "b"]
    assert path.read_bytes() != whole, "nothing changes before there is something to write"
    again.append([{"run_key": "c"}])
    again.close()
    assert path.read_bytes() == whole + b'{"run_key": "c"}\n'


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    first = ResultsFile(path, ["a"])
    with pytest.raises(InputError, match="another run is writing"):
        ResultsFile(path, ["a"])
    first.close()
    ResultsFile(path, ["a"]).close()


@pytest.mark.parametrize(
    ("lines", "keys", "message"),
    [
        (["a", "x"], ["a", "b"], "its result 2 has another"),
        (["a", "b"], ["a"], "holds 2 results and this run has 1"),
    ],
)
def test_other_runs_are_refused(
    tmp_path: Path, lines: list[str], keys: list[str], message: str
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps({"run_key": key}) + "\n" for key in lines))
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        ResultsFile(path, keys)
    assert path.read_bytes() == before
    with ResultsFile(path, keys, overwrite=True) as file:
        assert path.read_bytes() == before, "kept until there is something in its place"
        file.append([{"run_key": keys[0]}])
    assert path.read_bytes() == b'{"run_key": "' + keys[0].encode() + b'"}\n'


@pytest.mark.parametrize(
    "content",
    [
        b'{"thesis": "years of work"}',
        b"line one\nlast line",
        b"my notes",
        b'"my key"\n',
        b'{"run_key": "a"}\nnot ours\n{"torn',
        b"\xff\xfe",
    ],
)
def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "precious.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a result of this command"):
        ResultsFile(path, ["a", "b", "c"])
    assert path.read_bytes() == content


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from antiphon.record import ResultsFile\n"
        "from antiphon.errors import AntiphonError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = ResultsFile(Path(sys.argv[1]), ['a', 'b'])\n"
        "file.append([{'run_key': 'a'}])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n    file.append([{'run_key': 'b', 'text': 'x' * 200}])\n"
        "except AntiphonError as error:\n    print(error)\n"
    )
    path = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "could not be written" in said and "the 1 results before are kept" in said
    assert path.read_bytes() == b'{"run_key": "a"}\n'


def test_json_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"ä": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
