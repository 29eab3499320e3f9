"""The hidden-state switcher: what it looks at, how it decides and learns, what it refuses."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from antiphon.backends.transformers import LoadedModel
from antiphon.cli.main import main
from antiphon.config import CandidateConfig, CollectConfig, ModelConfig, PolicyConfig
from antiphon.decoding.boundaries import EveryTokens
from antiphon.decoding.engine import Engine, TurnOptions
from antiphon.decoding.hidden import (
    WEIGHTS,
    ChoiceHead,
    HiddenStateSwitcher,
    features_of,
    load_head,
    signals,
)
from antiphon.decoding.policies import Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.rows import Row
from antiphon.decoding.switcher_card import SwitcherCard, check_switcher, read_card
from antiphon.errors import CapabilityError, InputError
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.record import write_json
from antiphon.training.hidden import train_hidden_switcher
from antiphon.training.settings import HeadConfig, LabelConfig
from antiphon.training.store import ABOUT, ROWS, identities, read_store
from antiphon.training.targets import labelled
from antiphon.types import GREEDY, SamplingParams
from tests.scripted import Asked, Scripted, letters
from tests.tiny import backend, build, loaded, random_ids, three, tokenizer, written
from tests.tuning import save_base

QUERIES = ["the quick brown fox", "what is two plus two?", "a"]
SIX = SamplingParams(temperature=1.0, top_p=1.0, top_k=6)


# -- what it looks at --------------------------------------------------------------------------
def entropy(probabilities: Sequence[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities)


def test_signals_by_hand() -> None:
    first, second = [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]
    logits = [torch.tensor([first]).log() + 3, torch.tensor([second]).log() - 1]
    [got] = signals(logits, [0, 0], [1])
    # Best, entropy, and probability of a's best token (0) and of b's (2); then nobody, a, b.
    wanted = [0.5, entropy(first), 0.5, 0.2, 0.7, entropy(second), 0.1, 0.7, 0, 0, 1]
    assert got.tolist() == pytest.approx(wanted, abs=1e-6)
    [apart] = signals(logits, [0, 1], [-1])
    wanted = [0.5, entropy(first), 0.5, 0, 0.7, entropy(second), 0, 0.7, 1, 0, 0]
    assert apart.tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_token_that_a_model_does_not_know_is_impossible_for_it() -> None:
    """Checkpoints of one vocabulary may differ in added tokens at its end."""
    small, large = torch.tensor([[0.1, 0.9]]).log(), torch.tensor([[0.2, 0.1, 0.7]]).log()
    [got] = signals([small, large], [0, 0], [-1])
    assert got[:8].tolist() == pytest.approx(
        [0.9, entropy([0.1, 0.9]), 0.9, 0.0, 0.7, entropy([0.2, 0.1, 0.7]), 0.1, 0.7], abs=1e-6
    )


def read_rows(pool: CandidatePool, turns: int = 2) -> tuple[Engine, list[Row], Any]:
    engine = Engine(pool.candidates(), Uniform(), TurnOptions(20, EveryTokens(4)))
    rows = engine.rows(QUERIES, [5, 6, 7])
    writers = engine.open(len(rows), engine.longest(rows))
    for row in rows:
        row.pause = lambda row: row.turns_taken >= turns
    for _ in engine.advance(rows, writers):
        pass
    engine.read(rows, writers)
    return engine, rows, writers


@pytest.mark.parametrize("turns", [0, 2])
def test_features_are_states_signals_and_the_share_written(turns: int) -> None:
    _, rows, _ = read_rows(three("llama", SIX), turns)
    got = features_of(rows, 3)
    assert got.shape == (3, 3 * 32 + 3 * 5 + 4 + 1)
    assert got.dtype == torch.float32
    for row, features in zip(rows, got, strict=True):
        logits, states = [], []
        for seed in range(3):
            ids = torch.tensor([[*row.prompts[seed], *row.ids[0]]])
            with torch.no_grad():
                out = loaded("llama", seed).model(ids, use_cache=False, output_hidden_states=True)
            logits.append(out.logits[:, -1])
            states.append(out.hidden_states[-1][0, -1])
        writer = row.turns[-1].writer if turns else -1
        rest = signals(logits, [0, 0, 0], [writer])[0]
        want = torch.cat([*states, rest, torch.tensor([4 * turns / 20])])
        assert torch.allclose(features, want, atol=1e-4)


def test_models_that_show_no_states_are_refused() -> None:
    pool = CandidatePool({name: Scripted(name, letters(name)) for name in "ab"}, GREEDY)
    _, rows, _ = read_rows(pool)
    with pytest.raises(CapabilityError, match="candidate 0 does not show its hidden states"):
        features_of(rows, 2)
    method = SwitchGeneration(pool, HiddenStateSwitcher(ChoiceHead(12, 2), ["a", "b"]))
    with pytest.raises(CapabilityError, match="LM switcher"):
        method.generate(["?"])


def test_models_that_can_only_generate_are_refused_at_once() -> None:
    pool = CandidatePool({"near": backend("near"), "far": Asked("far", letters("x"))})
    policy = HiddenStateSwitcher(ChoiceHead(12, 2), ["near", "far"])
    with pytest.raises(CapabilityError, match=r"reads hidden states needs .*'Steps'.* 'far'"):
        SwitchGeneration(pool, policy)


# -- the head ----------------------------------------------------------------------------------
def test_features_are_standardised() -> None:
    head = ChoiceHead(3, 2)
    seen = torch.tensor([[1.0, 10.0, 7.0], [3.0, 10.0, 7.0], [5.0, 10.0, 7.00001]])
    head.standardise(seen)
    assert head.mean.tolist() == pytest.approx([3.0, 10.0, 7.0], abs=1e-4)
    assert float(head.scale[0]) == pytest.approx(2.0)
    assert float(head.scale[2]) == pytest.approx(1e-3), "tiny differences are not blown up"
    # The second never varied: nothing was learned of it, and it decides nothing.
    first, other = torch.tensor([[2.0, 10.0, 7.0]]), torch.tensor([[2.0, -99.0, 7.0]])
    assert head.eval()(first).tolist() == head(other).tolist()
    assert head(first).tolist() != head(torch.tensor([[9.0, 10.0, 7.0]])).tolist()


def test_one_instance_is_standardised_too() -> None:
    head = ChoiceHead(2, 2).eval()
    head.standardise(torch.tensor([[4.0, 5.0]]))
    assert torch.isfinite(head(torch.tensor([[4.0, 6.0]]))).all()


def test_scores_by_hand() -> None:
    head = ChoiceHead(2, 2, hidden=1).eval()
    with torch.no_grad():
        head.mean.copy_(torch.tensor([1.0, 0.0]))
        head.scale.copy_(torch.tensor([2.0, 1.0]))
        head.inner.weight.copy_(torch.tensor([[1.0, -1.0]]))
        head.inner.bias.fill_(0.5)
        head.outer.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        head.outer.bias.copy_(torch.tensor([0.0, 1.0]))
    x = (3.0 - 1) / 2 - 0.25 + 0.5
    inner = x * 0.5 * (1 + math.erf(x / math.sqrt(2)))
    got = head(torch.tensor([[3.0, 0.25]]))[0].tolist()
    assert got == pytest.approx([2 * inner, 1 - inner], abs=1e-6)


def saved(folder: Path, head: ChoiceHead, names: Sequence[str], **card: Any) -> Path:
    """A switcher's directory."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, folder / WEIGHTS)
    settings = {"features": head.mean.shape[0], "hidden": head.inner.weight.shape[0]}
    SwitcherCard("hidden", list(names), settings=settings, **card).write(folder)
    return folder


def test_a_head_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = ChoiceHead(7, 3, hidden=5, dropout=0.5)
    head.standardise(torch.randn(20, 7))
    again, card = load_head(saved(tmp_path / "head", head, "abc"))
    some = torch.randn(4, 7)
    assert torch.equal(again(some), head.eval()(some))
    assert not again.training
    assert (card.kind, list(card.candidates)) == ("hidden", ["a", "b", "c"])


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "head", ChoiceHead(7, 3), "abc")
    (folder / WEIGHTS).unlink()
    (tmp_path / "empty").mkdir()
    SwitcherCard("lm", list("abc")).write(tmp_path / "empty")
    for path in (folder, tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(InputError, match="holds no hidden-state switcher"):
            load_head(path)
    for content in ('{"kind": "hidden"', '{"kind": "hidden", "colour": 1}', "[]"):
        (folder / "switcher.json").write_text(content)
        with pytest.raises(InputError, match="does not describe a switcher"):
            read_card(str(folder))


# -- decisions ---------------------------------------------------------------------------------
def in_turns(features: int, count: int) -> ChoiceHead:
    """A head that lets the candidate after the last writer speak, the first one at first."""
    head = ChoiceHead(features, count, hidden=count + 1)
    place = features - 1 - (count + 1)  # of the last writer: nobody, first, second, ...
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        for index in range(count + 1):
            head.inner.weight[index, place + index] = 10.0
            head.outer.weight[index % count, index] = 1.0
    return head


FEATURES = 3 * 32 + 3 * 5 + 4 + 1


def test_decisions_follow_the_head() -> None:
    method = SwitchGeneration(
        three("llama", SIX),
        HiddenStateSwitcher(in_turns(FEATURES, 3), "abc", top_p=None),
        max_new_tokens=20,
        boundary=EveryTokens(4),
    )
    for done in method.generate(QUERIES):
        assert "".join(segment.candidate for segment in done.segments) == "abcab"
        assert done.usage["switcher"].decisions == 5
        for segment in done.segments:
            best = segment.probabilities[segment.candidate]
            assert best == pytest.approx(math.exp(10) / (math.exp(10) + 2))
            assert sum(segment.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_probabilities_are_the_heads(temperature: float) -> None:
    torch.manual_seed(3)
    head = ChoiceHead(FEATURES, 3)
    pool = three("llama", SIX)
    policy = HiddenStateSwitcher(head, "abc", temperature=temperature)
    method = SwitchGeneration(pool, policy, max_new_tokens=4, boundary=EveryTokens(4))
    _, rows, _ = read_rows(pool, 0)
    for row in rows:
        row.max_new_tokens = 4
    wanted = (head.eval()(features_of(rows, 3)) / temperature).softmax(-1)
    for done, want in zip(method.generate(QUERIES, seeds=[5, 6, 7]), wanted, strict=True):
        got = [done.segments[0].probabilities[name] for name in "abc"]
        assert got == pytest.approx(want.tolist(), abs=1e-4)


def test_some_may_not_be_chosen() -> None:
    policy = HiddenStateSwitcher(in_turns(FEATURES, 3), "abc", top_p=None, without=["b"])
    method = SwitchGeneration(
        three("llama", SIX), policy, max_new_tokens=20, boundary=EveryTokens(4)
    )
    for done in method.generate(QUERIES):
        # After a it would be b's turn: of the others the first is as good as any.
        assert "".join(segment.candidate for segment in done.segments) == "aaaaa"
        assert all(segment.probabilities["b"] == 0 for segment in done.segments)
        assert "b" in done.usage, "it reads all the same: the head looks at what it sees"
    for names, said in ((["x"], "leave out x"), (["a", "b", "c"], "leave out a, b, c")):
        with pytest.raises(InputError, match=said):
            SwitchGeneration(
                three(), HiddenStateSwitcher(in_turns(FEATURES, 3), "abc", without=names)
            )


@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"top_p": 1.5}, {"temperature": 0.0}], ids=str)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="switcher's"):
        HiddenStateSwitcher(ChoiceHead(9, 2), "ab", **options)


def test_pools_of_another_size_or_of_other_models_are_refused() -> None:
    pool = three("llama", SIX)
    with pytest.raises(InputError, match=r"trained for 2 candidates \(x, y\).*has 3 \(a, b, c\)"):
        SwitchGeneration(pool, HiddenStateSwitcher(ChoiceHead(9, 2), "xy"))
    method = SwitchGeneration(pool, HiddenStateSwitcher(ChoiceHead(9, 3), "xyz"))
    with pytest.raises(InputError, match=f"trained on 9 features and this pool shows {FEATURES}"):
        method.generate(["?"])


def test_a_full_context_ends_the_row() -> None:
    short = LoadedModel(build("llama", seed=5, max_position_embeddings=30), "short")
    pool = CandidatePool({"a": backend("a"), "b": backend("b", short)}, SIX)
    features = 2 * 32 + 2 * 4 + 3 + 1
    [head] = [in_turns(features, 2)]
    policy = HiddenStateSwitcher(head, "ab", top_p=None, without=["b"])
    method = SwitchGeneration(pool, policy, max_new_tokens=60, boundary=EveryTokens(4))
    prompt = len(tokenizer().encode("fox"))
    (done,) = method.generate(["fox"])
    assert done.finish_reason == "context"
    # The first boundary at which b has more before it than it can read.
    assert len(written(done)) == 4 * math.ceil((30 - prompt + 1) / 4)
    assert {segment.candidate for segment in done.segments} == {"a"}


# -- what it costs -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("gemma3_text", {}),
        ("lfm2", {}),
        ("llama", {"first": "b", "last": "c"}),
        ("llama", {"final_prompt": " so"}),
        ("llama", {"batch_rows": 1}),
    ],
    ids=str,
)
def test_every_candidate_reads_all_once_and_no_more(kind: str, options: dict[str, Any]) -> None:
    """n (P + T) positions, less what no decision needed; what was seen is kept until it is used."""
    pool = three(kind, SIX)
    policy = HiddenStateSwitcher(in_turns(FEATURES, 3), "abc")
    method = SwitchGeneration(pool, policy, max_new_tokens=26, boundary=EveryTokens(4), **options)
    for query, done in zip(QUERIES, method.generate(QUERIES), strict=True):
        prompt = len(tokenizer().encode(query))
        at, asked, ends = 0, 0, dict.fromkeys("abc", 1)
        for segment in done.segments:
            if segment.probabilities:
                asked = prompt + at
            at += len(segment.token_ids)
            ends[segment.candidate] = prompt + at
        positions = {name: done.usage[name].positions for name in "abc"}
        # All that stood before the last decision, and one's own turns but for their last token.
        assert positions == {name: max(asked, ends[name] - 1) for name in "abc"}
        assert done.usage["switcher"].positions == 0
        made = sum(bool(segment.probabilities) for segment in done.segments)
        assert done.usage["switcher"].decisions == made > 3
        if not options:
            last = len(done.segments[-1].token_ids)
            assert sum(positions.values()) == 3 * (prompt + at) - 2 * last - 1


def test_pools_of_several_vocabularies() -> None:
    pool = CandidatePool(
        {
            "fox": backend("fox", loaded("llama", 0)),
            "sea": backend("sea", loaded("llama", 1), tokens=tokenizer("bytes", "sea")),
        },
        SamplingParams(temperature=1.5, top_p=1.0),
    )
    features = 2 * 32 + 2 * 4 + 3 + 1
    method = SwitchGeneration(
        pool,
        HiddenStateSwitcher(in_turns(features, 2), ["fox", "sea"], top_p=None),
        max_new_tokens=60,
        boundary=EveryTokens(4),
    )
    together = method.generate(QUERIES, seeds=[1, 2, 3])
    for query, seed, done in zip(QUERIES, [1, 2, 3], together, strict=True):
        names = [segment.candidate for segment in done.segments]
        assert names == (["fox", "sea"] * 30)[: len(names)]
        (alone,) = method.generate([query], seeds=[seed])
        assert alone.text == done.text
    assert max(len(done.segments) for done in together) > 2


# -- before anything is loaded -----------------------------------------------------------------
@pytest.fixture
def models(tmp_path: Path) -> list[CandidateConfig]:
    """Directories that stand for models: they cannot be loaded."""
    made = []
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model": name}))
        made.append(CandidateConfig(name=name, model=str(tmp_path / name)))
    return made


@pytest.fixture
def trained(models: list[CandidateConfig], tmp_path: Path) -> Path:
    return saved(tmp_path / "head", ChoiceHead(9, 3), "abc", models=identities(models))


def policy_of(path: Path, kind: str = "hidden") -> PolicyConfig:
    return PolicyConfig(kind=kind, switcher=ModelConfig(model=str(path)))


def test_a_switcher_is_checked_against_its_pool(
    models: list[CandidateConfig], trained: Path, tmp_path: Path
) -> None:
    check_switcher(policy_of(trained), models)
    check_switcher(PolicyConfig(), models[:1])
    renamed = [model.model_copy(update={"name": model.name * 2}) for model in models]
    check_switcher(policy_of(trained), renamed)
    cases: list[tuple[PolicyConfig, list[CandidateConfig], str]] = [
        (policy_of(trained), models[:2], "trained for 3 candidates"),
        (policy_of(trained), [models[0], models[2], models[1]], "candidate 'c' is not the model"),
        (policy_of(trained, "lm"), models, "is of kind 'hidden', and the policy is 'lm'"),
        (policy_of(tmp_path / "a"), models, "is no hidden-state switcher"),
    ]
    for policy, pool, said in cases:
        with pytest.raises(InputError, match=said):
            check_switcher(policy, pool)
    (tmp_path / "b" / "weights").write_text("others")
    with pytest.raises(InputError, match="candidate 'b' is not the model"):
        check_switcher(policy_of(trained), models)


def test_an_lm_switcher_may_serve_other_models_of_that_number(
    models: list[CandidateConfig], tmp_path: Path
) -> None:
    (tmp_path / "lm").mkdir()
    SwitcherCard("lm", list("xyz"), models={"x": {}, "y": {}, "z": {}}).write(tmp_path / "lm")
    check_switcher(policy_of(tmp_path / "lm", "lm"), models)
    check_switcher(policy_of(tmp_path / "a", "lm"), models)  # it was never trained as a switcher
    with pytest.raises(InputError, match="trained for 3 candidates"):
        check_switcher(policy_of(tmp_path / "lm", "lm"), models[:2])


@pytest.mark.parametrize(
    ("names", "more", "said"),
    [
        ("ab", [], "trained for 3 candidates (a, b, c), and the pool has 2 (a, b)"),
        ("acb", [], "candidate 'c' is not the model"),
        ("abc", ["--policy", "lm"], "is of kind 'hidden', and the policy is 'lm'"),
    ],
)
def test_the_command_refuses_before_it_loads(
    names: str,
    more: list[str],
    said: str,
    models: list[CandidateConfig],
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("antiphon.backends.loading.Loader.load", None)  # would raise if called
    paths = {model.name: model.model for model in models}
    pool = [flag for name in names for flag in ("-c", f"{name}={paths[name]}")]
    assert main(["generate", *pool, "--switcher", str(trained), *more, "hi"]) == 2
    shown = capsys.readouterr().err
    assert said in " ".join(shown.split())
    assert "Traceback" not in shown


# -- training ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> list[CandidateConfig]:
    """Two tiny models on disk."""
    folder = tmp_path_factory.mktemp("models")
    prompt = {"kind": "raw", "add_bos": False}
    return [
        CandidateConfig(name=name, model=str(save_base(folder / name, family)), prompt=prompt)
        for name, family in (("a", "llama"), ("b", "gpt2"))
    ]


def write_store(
    path: Path, pool: Sequence[CandidateConfig], count: int = 60, *, longest: int = 20
) -> Path:
    """A store in which the best candidate is the one that did not write the last segment."""
    path.mkdir(parents=True)
    config = CollectConfig(candidates=list(pool), max_new_tokens=longest, segment_tokens=4)
    about = {
        "kind": "rollouts",
        "fingerprint": {"config": config.model_dump(mode="json"), "models": identities(pool)},
        "scorer": {"name": "made up", "low": 0.0, "high": 1.0},
        "queries": count // 2,
    }
    write_json(path / ABOUT, about)
    rng, names = random.Random(0), [candidate.name for candidate in pool]
    rows = []
    for number in range(count):
        writers = [rng.choice("ab") for _ in range(rng.randint(1, longest // 4 - 1))]
        ids = random_ids([4] * len(writers), seed=number)
        last = names.index(writers[-1])
        utilities = [float(index != last) for index in (0, 1)]
        trace = [
            {"candidate": name, "text": "", "token_ids": part}
            for name, part in zip(writers, ids, strict=True)
        ]
        messages = [{"role": "user", "content": f"what is {number // 2}?"}]
        row = {"id": f"0/{number}", "messages": messages, "trace": trace, "candidates": names}
        rows.append({**row, "utilities": utilities, "scores": [[u] for u in utilities]})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / ROWS).write_text(text, encoding="utf-8")
    return path


QUICK = HeadConfig(learning_rate=1e-2, epochs=30, batch_size=16, validation_share=0.2, hidden=16)


def test_a_head_learns_an_easy_signal(real: list[CandidateConfig], tmp_path: Path) -> None:
    store = read_store(write_store(tmp_path / "store", real, 240))
    stages: list[tuple[str, int, int]] = []
    out = tmp_path / "head"
    report = train_hidden_switcher(
        [store], out, LabelConfig(), QUICK, progress=lambda *told: stages.append(told)
    )
    assert report["best_validation_accuracy"] >= 0.9
    assert report["best_validation_loss"] < 0.3
    assert (report["train_examples"], report["validation_examples"]) == (192, 48)
    features = 2 * 32 + 2 * 4 + 3 + 1
    assert report["trainable_parameters"] == 17 * 2 + 16 * (features + 1)
    assert stages[0] == ("reading traces", 64, 240)
    assert stages[-1][0] == "training the head"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "head.safetensors",
        "switcher.json",
        "training.json",
    ]
    card = read_card(str(out))
    assert card is not None
    assert (card.kind, list(card.candidates), dict(card.models)) == (
        "hidden",
        ["a", "b"],
        identities(real),
    )
    assert card.trained_on[0]["informative"] == 240
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "Hidden-state switcher for a, b" in text
    assert f"a best candidate chosen in {report['best_validation_accuracy']:.0%}" in text

    # Used, it does what it has learned: after a comes b, after b comes a.
    check_switcher(policy_of(out), real)
    head, found = load_head(out)
    method = SwitchGeneration(
        CandidatePool.load(real, sampling=SIX),
        HiddenStateSwitcher(head, found.candidates, top_p=None),
        max_new_tokens=20,
        boundary=EveryTokens(4),
    )
    pairs = [
        (one.candidate, two.candidate)
        for done in method.generate([f"what is {n}?" for n in range(20)])
        for one, two in zip(done.segments, done.segments[1:], strict=False)
    ]
    assert sum(one != two for one, two in pairs) >= 0.85 * len(pairs)


def test_the_same_training_gives_the_same_head_and_is_not_repeated(
    real: list[CandidateConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = read_store(write_store(tmp_path / "store", real, 20))
    config = QUICK.model_copy(update={"epochs": 3.0})
    one, two = tmp_path / "one", tmp_path / "two"
    first = train_hidden_switcher([store], one, LabelConfig(), config)
    state = torch.get_rng_state()
    train_hidden_switcher([store], two, LabelConfig(), config)
    assert torch.equal(state, torch.get_rng_state()), "the program's own draws are left alone"
    assert (one / WEIGHTS).read_bytes() == (two / WEIGHTS).read_bytes()
    monkeypatch.setattr("antiphon.backends.loading.Loader.load", None)  # would raise if called
    before = {path.name: path.stat().st_mtime_ns for path in one.iterdir()}
    assert train_hidden_switcher([store], one, LabelConfig(), config) == first
    assert {path.name: path.stat().st_mtime_ns for path in one.iterdir()} == before
    for labels, other, said in (
        (LabelConfig(), config.model_copy(update={"hidden": 8}), "hidden: 16, now 8"),
        (LabelConfig(labels="soft"), config, 'labels.labels: "hard", now "soft"'),
        (LabelConfig(instances=10), config, "examples"),
    ):
        with pytest.raises(InputError, match="was made by another training") as caught:
            train_hidden_switcher([store], one, labels, other)
        assert said in str(caught.value)


def test_overwriting_trains_anew(real: list[CandidateConfig], tmp_path: Path) -> None:
    store = read_store(write_store(tmp_path / "store", real, 20))
    config = QUICK.model_copy(update={"epochs": 1.0})
    out = tmp_path / "head"
    train_hidden_switcher([store], out, LabelConfig(), config)
    before = load_file(out / WEIGHTS)["inner.weight"]
    other = config.model_copy(update={"seed": 1})
    train_hidden_switcher([store], out, LabelConfig(), other, overwrite=True)
    assert not torch.equal(load_file(out / WEIGHTS)["inner.weight"], before)


def test_a_killed_training_does_not_read_the_traces_again(
    real: list[CandidateConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = read_store(write_store(tmp_path / "store", real, 20))
    config = QUICK.model_copy(update={"epochs": 2.0})
    whole, out = tmp_path / "whole", tmp_path / "head"
    train_hidden_switcher([store], whole, LabelConfig(), config)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("antiphon.training.hidden._fit", killed)
        with pytest.raises(KeyboardInterrupt):
            train_hidden_switcher([store], out, LabelConfig(), config)
    assert not (out / WEIGHTS).exists()
    monkeypatch.setattr("antiphon.backends.loading.Loader.load", None)  # would raise if called
    train_hidden_switcher([store], out, LabelConfig(), config)
    assert (out / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_how_many_traces_are_read_at_once_does_not_matter(
    real: list[CandidateConfig], tmp_path: Path
) -> None:
    store = read_store(write_store(tmp_path / "store", real, 20))
    heads = []
    for batch in (3, 64):
        config = QUICK.model_copy(update={"epochs": 1.0, "batch_instances": batch})
        out = tmp_path / f"head {batch}"
        train_hidden_switcher([store], out, LabelConfig(), config)
        heads.append(load_file(out / WEIGHTS))
    for name, weights in heads[0].items():
        assert torch.allclose(weights, heads[1][name], atol=1e-3), name


def test_several_stores_make_one_switcher(real: list[CandidateConfig], tmp_path: Path) -> None:
    stores = [read_store(write_store(tmp_path / name, real, 12)) for name in ("one", "two")]
    config = QUICK.model_copy(update={"epochs": 1.0})
    report = train_hidden_switcher(stores, tmp_path / "head", LabelConfig(), config)
    assert report["train_examples"] + report["validation_examples"] == 24
    card = read_card(str(tmp_path / "head"))
    assert card is not None and len(card.trained_on) == 2


def test_training_refuses_what_it_cannot_learn_from(
    real: list[CandidateConfig], tmp_path: Path
) -> None:
    out = tmp_path / "head"
    one_query = read_store(write_store(tmp_path / "one query", real, 2))
    with pytest.raises(InputError, match=r"1 group\(s\) cannot be split"):
        train_hidden_switcher([one_query], out, LabelConfig(), QUICK)
    strict = LabelConfig(tolerance=1.0)
    with pytest.raises(InputError, match="are tied"):
        train_hidden_switcher([one_query], tmp_path / "nothing", strict, QUICK)
    assert not out.exists() and not (tmp_path / "nothing").exists()
    store = read_store(write_store(tmp_path / "other pool", real[::-1], 4))
    with pytest.raises(InputError, match="made with different pools"):
        train_hidden_switcher([one_query, store], tmp_path / "nothing", LabelConfig(), QUICK)
    assert not (tmp_path / "nothing").exists()


def test_training_writes_over_nobodys_files(real: list[CandidateConfig], tmp_path: Path) -> None:
    store = read_store(write_store(tmp_path / "store", real, 8))
    model = Path(real[0].model)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    (tmp_path / "file").write_text("mine")
    for out, said in ((model, "no training"), (tmp_path / "file", "is a file")):
        for overwrite in (False, True):
            with pytest.raises(InputError, match=said):
                train_hidden_switcher([store], out, LabelConfig(), QUICK, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_trace_that_fills_a_context_is_left_out(
    real: list[CandidateConfig], tmp_path: Path
) -> None:
    store = write_store(tmp_path / "store", real, 8)
    rows = [json.loads(line) for line in (store / ROWS).read_text().splitlines()]
    rows[2]["trace"] = [{"candidate": "a", "text": "", "token_ids": random_ids([300])[0]}]
    (store / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = train_hidden_switcher([read_store(store)], tmp_path / "head", LabelConfig(), QUICK)
    assert report["left_out"] == 1
    assert (
        report["train_examples"] + report["validation_examples"]
        == len(labelled(read_store(store), LabelConfig())) - 1
    )
