"""What cannot be exact is refused by name and with the reason, before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from antiphon.backends.families import context_length_of
from antiphon.backends.loading import _check_adapter
from antiphon.backends.slots import SlotSession
from antiphon.backends.transformers import LoadedModel
from antiphon.backends.vocabulary import TokenizerVocabulary, losses
from antiphon.decoding.engine import Piece
from antiphon.decoding.policies import Fixed, Schedule
from antiphon.decoding.pool import CandidatePool
from antiphon.errors import CapabilityError, InputError, UnsupportedModelError
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.types import GREEDY, SamplingParams
from tests.tiny import backend, loaded, three, tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_local_windows_outside_the_cache_are_refused() -> None:
    config = transformers.GPTNeoConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=256,
    )
    with pytest.raises(UnsupportedModelError, match=r"'gpt_neo'.*local attention windows"):
        LoadedModel(model_of(config), "neo")


@pytest.mark.parametrize("kind", ["stablelm", "granite", "starcoder2"])
def test_families_without_a_parity_test_are_checked_on_their_weights(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {**SMALL, **({"sliding_window": 8} if kind == "starcoder2" else {})}
    model = model_of(transformers.AutoConfig.for_model(kind, **fields))
    LoadedModel(model, kind)  # exact: accepted

    right = SlotSession.mask

    def blind(self: SlotSession, columns: torch.Tensor, width: int) -> Any:
        """As if the newest token of every row could not be seen."""
        return right(self, (columns - 1).clamp(min=0), width)

    monkeypatch.setattr(SlotSession, "mask", blind)
    with pytest.raises(UnsupportedModelError, match="cached logits differ"):
        LoadedModel(model, kind)


def test_rotary_embeddings_that_change_for_the_whole_batch_end_the_context() -> None:
    factors = [1.0] * 4
    config = transformers.Phi3Config(
        **SMALL,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": factors,
            "long_factor": [4.0] * 4,
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "partial_rotary_factor": 1.0,
        },
    )
    assert context_length_of(config) == 32
    assert context_length_of(transformers.Phi3Config(**SMALL)) == 256


@pytest.mark.parametrize(
    "odd",
    [
        {"use_dora": True},
        {"alora_invocation_tokens": [7]},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1]},
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_adapters_that_cannot_be_mixed_are_refused(odd: dict[str, Any]) -> None:
    from peft import LoraConfig

    common: dict[str, Any] = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    _check_adapter(LoraConfig(**common), "fine")
    with pytest.raises(CapabilityError, match=next(iter(odd))):
        _check_adapter(LoraConfig(**common, **odd), "odd")


def lossy() -> TokenizerVocabulary:
    """A WordPiece tokenizer that lower-cases, as BERT's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = [chr(c) for c in range(97, 123)]
    pieces = ["[UNK]", *letters, *("##" + x for x in letters), *"0123456789().,:!?"]
    inner = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return TokenizerVocabulary(transformers.PreTrainedTokenizerFast(tokenizer_object=inner), "wp")


def test_lossy_tokenizers_cannot_join_a_pool_that_passes_text() -> None:
    vocabulary = lossy()
    assert {"upper case", "accents", "line breaks"} <= set(losses(vocabulary))
    for kind in ("bytes", "metaspace"):
        assert losses(TokenizerVocabulary(tokenizer(kind, "sea", 400))) == []
    sea = backend("sea", tokens=tokenizer("bytes", "sea"))
    wordpiece = backend("wp", tokens=vocabulary.tokenizer)
    with pytest.raises(InputError, match=r"'wp'.*loses upper case"):
        SwitchGeneration(CandidatePool({"sea": sea, "wp": wordpiece}))
    SwitchGeneration(CandidatePool({"one": wordpiece, "two": wordpiece}))  # ids need no text


def test_a_stop_string_in_the_final_prompt_is_refused() -> None:
    with pytest.raises(InputError, match=r"stop string 'END' stands in the final prompt"):
        SwitchGeneration(three(), final_prompt=" THE END", stop=("END",))


@pytest.mark.parametrize("temperature", [-1.0, 1e-39, float("nan")])
def test_temperatures_that_say_nothing_are_refused(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        CandidatePool({"a": backend()}, SamplingParams(temperature=temperature))


def test_seeds_must_be_one_a_query() -> None:
    with pytest.raises(InputError, match="1 seeds for 2 queries"):
        SwitchGeneration(three()).generate(["a", "b"], seeds=[1])


# -- several runs of one pool at a time --------------------------------------------------------
QUERIES = ["the fox", "a", "what is two plus two", "sea", "the quick brown", "x y", "fox", "by"]


def texts(method: SwitchGeneration) -> list[str]:
    return [done.text for done in method.generate(QUERIES)]


def test_runs_over_one_pool_may_overlap() -> None:
    """A paused run holds its workspace; another gets its own."""
    pool = three(sampling=GREEDY)
    method = SwitchGeneration(pool, max_new_tokens=24)
    want = texts(method)
    paused = method.run(QUERIES, stream=True)
    shown: dict[int, str] = {}
    for step, event in enumerate(paused):
        if isinstance(event, Piece):
            shown[event.index] = shown.get(event.index, "") + event.text
        if step % 25 == 3:
            assert texts(method) == want
    assert [shown[index] for index in range(len(QUERIES))] == want


def test_one_policy_serves_two_pools_at_a_time() -> None:
    for policy in (Fixed("a"), Schedule(["b", "a"], repeat=True)):
        first = SwitchGeneration(
            CandidatePool({n: backend(n, loaded(seed=i)) for i, n in enumerate("ab")}, GREEDY),
            policy,
            max_new_tokens=12,
        )
        want = texts(first)
        running = first.run(QUERIES, stream=True)
        next(running)
        SwitchGeneration(
            CandidatePool({n: backend(n, loaded(seed=i)) for i, n in enumerate("cab")}, GREEDY),
            policy,
            max_new_tokens=12,
        ).generate(QUERIES[:2])
        got = {e.index: e.completion.text for e in running if not isinstance(e, Piece)}
        assert [got[index] for index in range(len(QUERIES))] == want


def test_the_fingerprint_of_large_files_sees_changes_in_the_middle(tmp_path: Path) -> None:
    from antiphon.record import directory_fingerprint

    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(80 * 2**20)
    before = directory_fingerprint(tmp_path)
    with weights.open("r+b") as file:
        file.seek(32 * 2**20 + 5)
        file.write(b"changed")
    assert directory_fingerprint(tmp_path) != before
