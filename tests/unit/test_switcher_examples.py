"""What an LM switcher is trained on is what it reads when it decides; what is refused before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from antiphon.backends.loading import load_vocabulary
from antiphon.backends.transformers import LoadedModel
from antiphon.config import CollectConfig, ModelConfig, PromptConfig
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.switcher import LMSwitcher
from antiphon.decoding.switcher_card import read_card
from antiphon.decoding.switcher_text import SwitcherPrompt, SwitcherReader
from antiphon.errors import InputError
from antiphon.evaluation.generation import Item
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.training.collect import Collection
from antiphon.training.finetuning import TrainConfig, TrainReport
from antiphon.training.settings import LabelConfig
from antiphon.training.store import Store, StoredInstance, read_store
from antiphon.training.switcher import choice_examples, train_lm_switcher
from antiphon.training.targets import labelled
from antiphon.types import Message, SamplingParams
from tests.tiny import backend, build, tokenizer
from tests.tuning import save_base

QUERIES = ["the quick brown fox", "what is two plus two?"]
QUESTION = (
    " Which model should generate the next segment? Please respond with a number from 0 to 1. "
    "The answer is model "
)


class Vowels:
    """Scores the share of vowels."""

    name, fingerprint, low, high = "vowels", "vowels", 0.0, 1.0

    def check(self, items: Sequence[Item]) -> None:
        """Every item will do."""

    def score(self, texts: Sequence[str], items: Sequence[Item]) -> list[float]:
        return [sum(text.count(v) for v in "aeiou") / max(1, len(text)) for text in texts]


def save_model(folder: Path, text: str, chat: bool = False) -> Path:
    """A model directory whose tokenizer was trained on this text."""
    build("llama", num_hidden_layers=2).save_pretrained(folder)
    tokenizer.__wrapped__("bytes", text, chat=chat).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models: ``fox`` and ``twin`` of one vocabulary, ``sea`` of another."""
    folder = tmp_path_factory.mktemp("models")
    save_base(folder / "twin", "gpt2")
    save_model(folder / "fox", "fox", chat=True)
    save_model(folder / "sea", "sea")
    return folder


def collected(folder: Path, path: Path, *names: str, **over: Any) -> Store:
    """A store of two queries, one of them a chat."""
    prompt = {"kind": "plain", "turn": "{content}\n", "opening": "", "add_bos": False}
    settings: dict[str, Any] = {
        "candidates": [{"name": n, "model": str(folder / n), "prompt": prompt} for n in names],
        "max_new_tokens": 40,
        "segment_tokens": 4,
        "completions": 2,
        **over,
    }
    config = CollectConfig.model_validate(settings)
    chat = (Message("system", "be brief"), Message("user", QUERIES[1]))
    items = [Item(QUERIES[0]), Item(chat)]
    pool = CandidatePool.load(config.candidates, sampling=SamplingParams(1.5, 1.0))
    with Collection(path, items, config, Vowels()) as collection:
        collection.run(pool)
    return read_store(path)


def reader_of(folder: Path, frame: Any = "plain") -> SwitcherReader:
    vocabulary = load_vocabulary(str(folder), ModelConfig(model=str(folder)), "switcher")

    def render(query: Any) -> list[int]:
        texts = [query] if isinstance(query, str) else [turn.content for turn in query]
        return vocabulary.encode("\n".join(texts) + "\n")

    return SwitcherReader(SwitcherPrompt(frame=frame), 2, vocabulary, render, "switcher")


EVERYTHING = LabelConfig(tolerance=0.0, labels="soft")


def telling(store: Store) -> list[StoredInstance]:
    """Instances that are learned from: all but those whose branches are worth just the same."""
    return [instance for instance, _ in labelled(store, EVERYTHING)]


def by_hand(store: Store, reader: SwitcherReader, start: str) -> list[list[int]]:
    """Tags, segments and question, encoded piece by piece."""
    encode = reader.vocabulary.encode
    texts = []
    for instance in telling(store):
        query = instance.query
        contents = [query] if isinstance(query, str) else [turn.content for turn in query]
        ids = encode(start.format("\n".join(contents)))
        for turn in instance.turns:
            ids += encode(f" <model {turn.writer} begins> ") + list(turn.ids)
            ids += encode(f" <model {turn.writer} ends>")
        texts.append(ids + reader.question)
    return texts


def test_examples_are_the_tagged_trace_and_the_question(folder: Path, tmp_path: Path) -> None:
    store = collected(folder, tmp_path / "store", "fox", "twin", traces=3)
    reader = reader_of(folder / "fox")
    assert reader.vocabulary.decode(reader.question).strip() == QUESTION.strip()
    examples = choice_examples([store], reader, EVERYTHING)
    assert [list(example.ids) for example in examples] == by_hand(store, reader, "{}\n")
    assert [example.group for example in examples] == [i.group for i in telling(store)]
    assert len({example.group for example in examples}) == 2
    assert all(sum(example.target) == pytest.approx(1) for example in examples)
    assert any(instance.turns for instance in store.instances)


def test_the_chat_frame_is_trained_as_it_is_asked(folder: Path, tmp_path: Path) -> None:
    store = collected(folder, tmp_path / "store", "fox", "twin", traces=2)
    reader = reader_of(folder / "fox", "chat")
    examples = choice_examples([store], reader, EVERYTHING)
    assert [list(e.ids) for e in examples] == by_hand(store, reader, "<|user|>{}")
    assert reader.vocabulary.tokenizer.decode(reader.question).endswith("<|end|><|assistant|>")


@pytest.mark.parametrize("names", [("fox", "twin"), ("fox", "sea"), ("sea", "twin")], ids="-".join)
@pytest.mark.parametrize("switcher", ["fox", "sea"])
def test_training_reads_what_decoding_reads(
    names: tuple[str, ...],
    switcher: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the vocabularies: ids where the switcher can read them, its own ids of the text
    elsewhere."""
    store = collected(folder, tmp_path / "store", *names, traces=3)
    model = LoadedModel(build("llama", max_position_embeddings=2048), "switcher")
    one = backend("switcher", model, tokens=reader_of(folder / switcher).vocabulary.tokenizer)
    asked: list[list[int]] = []
    scores = LMSwitcher._scores

    def spy(self: LMSwitcher, session: Any, lanes: Any, chunks: Any) -> Any:
        for lane, chunk in zip(lanes, chunks, strict=True):
            asked.append([*lane.ids, *chunk, *self.text.question])
        return scores(self, session, lanes, chunks)

    monkeypatch.setattr(LMSwitcher, "_scores", spy)
    pool = CandidatePool.load(store.candidates)
    policy = LMSwitcher(one, prompt=SwitcherPrompt())
    engine = SwitchGeneration(pool, policy, max_new_tokens=40).engine
    examples = choice_examples([store], engine.policy.text, EVERYTHING)
    instances = telling(store)
    rows = engine.rows([instance.query for instance in instances], [0] * len(instances))
    for row, instance in zip(rows, instances, strict=True):
        row.resume(instance.turns)
        engine.policy.choose([row])
    assert len(examples) >= 3 and any(instance.turns for instance in instances)
    assert [list(example.ids) for example in examples] == asked


def test_no_model_is_loaded_for_examples(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = collected(folder, tmp_path / "store", "fox", "sea")
    monkeypatch.setattr("antiphon.backends.loading.Loader.load", None)  # would raise if called
    assert choice_examples([store], reader_of(folder / "fox"), EVERYTHING)


# -- training an LM switcher -------------------------------------------------------------------
REPORT = TrainReport(5, 1, 0, 3, False, 3, 0.5, 0.75, [], 1.0, 99)


class Finetuned:
    """Stands for the training: notes what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *given: Any, **more: Any) -> TrainReport:
        self.calls.append((*given, more))
        given[3].mkdir(parents=True)
        return REPORT


@pytest.fixture
def finetuned(monkeypatch: pytest.MonkeyPatch) -> Finetuned:
    made = Finetuned()
    monkeypatch.setattr("antiphon.training.switcher.finetune_choice", made)
    return made


def test_a_trained_lm_switcher_says_what_it_is(
    folder: Path, tmp_path: Path, finetuned: Finetuned
) -> None:
    stores = [
        collected(folder, tmp_path / name, "fox", "twin", traces=2, seed=seed)
        for seed, name in enumerate(("one", "two"))
    ]
    model, out = ModelConfig(model=str(folder / "fox")), tmp_path / "switcher"
    train = TrainConfig(epochs=1)
    assert train_lm_switcher(stores, model, out, EVERYTHING, train, frame="chat") == REPORT
    [(used, examples, labels, where, config, more)] = finetuned.calls
    assert (used.model, where, config, more["overwrite"]) == (model.model, out, train, False)
    assert [tokenizer().decode([label]) for label in labels] == ["0", "1"]
    reader = reader_of(folder / "fox", "chat")
    assert examples == choice_examples(stores, reader, EVERYTHING)
    assert len(examples) == sum(len(telling(store)) for store in stores) >= 6
    card = read_card(str(out))
    assert card is not None
    assert (card.kind, list(card.candidates), list(card.labels)) == (
        "lm",
        ["fox", "twin"],
        ["0", "1"],
    )
    assert (card.frame, card.prompt["kind"]) == ("chat", "raw")
    assert [entry["store"] for entry in card.trained_on] == [str(s.path) for s in stores]
    assert [entry["metric"] for entry in card.trained_on] == ["vowels", "vowels"]
    text = (out / "README.md").read_text(encoding="utf-8")
    assert f"Started from `{folder / 'fox'}`" in text
    assert "loss 0.500, a best candidate chosen in 75%" in text


def test_a_prompt_format_of_the_start_model_is_kept(
    folder: Path, tmp_path: Path, finetuned: Finetuned
) -> None:
    store = collected(folder, tmp_path / "store", "fox", "twin")
    plain = PromptConfig(kind="plain", opening="", turn="{content}|", add_bos=False)
    model, out = ModelConfig(model=str(folder / "fox"), prompt=plain), tmp_path / "switcher"
    train_lm_switcher([store], model, out, EVERYTHING, TrainConfig())
    [(_, examples, *_)] = finetuned.calls
    start = tokenizer().encode(QUERIES[0] + "|")
    assert list(examples[0].ids[: len(start)]) == start
    card = read_card(str(out))
    assert card is not None
    assert card.prompt["turn"] == "{content}|"


def test_what_cannot_be_learned_is_refused_before_training(
    folder: Path, tmp_path: Path, finetuned: Finetuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = collected(folder, tmp_path / "store", "fox", "twin")
    other = collected(folder, tmp_path / "other", "twin", "fox")
    out, start = tmp_path / "switcher", ModelConfig(model=str(folder / "fox"))
    cases: list[tuple[list[Store], ModelConfig, LabelConfig, str]] = [
        ([store, other], start, EVERYTHING, "different pools"),
        (
            [store],
            ModelConfig(model=str(tmp_path / "nowhere")),
            EVERYTHING,
            "there is no directory",
        ),
        ([store], start, LabelConfig(tolerance=9.0), "are tied"),
    ]
    for stores, model, labels, said in cases:
        with pytest.raises(InputError, match=said):
            train_lm_switcher(stores, model, out, labels, TrainConfig())
    monkeypatch.setattr(SwitcherReader, "_split_labels", lambda self: ([5], [[6, 7], [8]]))
    with pytest.raises(InputError, match="the label '0' takes several tokens"):
        train_lm_switcher([store], start, out, EVERYTHING, TrainConfig())
    assert finetuned.calls == [] and not out.exists()


def test_an_adapter_without_its_base_is_refused(
    folder: Path, tmp_path: Path, finetuned: Finetuned
) -> None:
    store = collected(folder, tmp_path / "store", "fox", "twin")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"base_model_name_or_path": str(tmp_path / "gone"), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="which is not there"):
        train_lm_switcher(
            [store],
            ModelConfig(model=str(adapter)),
            tmp_path / "switcher",
            EVERYTHING,
            TrainConfig(),
        )
    assert not (tmp_path / "switcher").exists()
