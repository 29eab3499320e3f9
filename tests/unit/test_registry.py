"""Names to objects, entry points included."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from antiphon.config import PolicyConfig
from antiphon.decoding.build import POLICIES, build_policy
from antiphon.errors import InputError
from antiphon.registry import Registry


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, points: str) -> None:
    """Put a package with entry points on the path, as pip would."""
    (folder / "plug.py").write_text(
        "from antiphon.decoding.policies import Fixed\n"
        "def build(config, loader):\n    return Fixed('chosen by plug')\n"
    )
    info = folder / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "plug", raising=False)


def test_a_package_adds_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "[antiphon.policies]\nplugged = plug:build\n")
    registry = Registry("policy", "antiphon.policies", POLICIES.builtin)
    assert "plugged" in registry.names() and "uniform" in registry.names()
    monkeypatch.setattr("antiphon.decoding.build.POLICIES", registry)
    policy = build_policy(PolicyConfig(kind="plugged"), None)  # type: ignore[arg-type]
    assert policy.name == "chosen by plug"


def test_two_packages_with_one_name_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "[antiphon.policies]\nuniform = plug:build\n")
    registry = Registry("policy", "antiphon.policies", POLICIES.builtin)
    with pytest.raises(InputError, match="two packages define the policy 'uniform'"):
        registry.names()


def test_unknown_and_broken_names() -> None:
    registry = Registry("thing", "antiphon.nothing", {"good": "json:loads", "bad": "json:none"})
    assert registry.get("good")("1") == 1
    with pytest.raises(InputError, match="unknown thing 'goood'") as caught:
        registry.get("goood")
    assert "did you mean 'good'" in caught.value.remedy
    with pytest.raises(InputError, match="cannot be loaded"):
        registry.get("bad")
