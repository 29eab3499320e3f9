"""What cannot be loaded is refused by name, with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from antiphon.backends.families import layout_of
from antiphon.backends.loading import resolve_adapter
from antiphon.backends.transformers import LoadedModel
from antiphon.config import CandidateConfig, ModelConfig
from antiphon.decoding.pool import CandidatePool
from antiphon.errors import CapabilityError, InputError, UnsupportedModelError
from tests.tiny import build, greedy_alone, random_ids, tokenizer

# PEFT 0.21 asks transformers 5 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    build("llama").save_pretrained(folder)
    tokenizer.__wrapped__().save_pretrained(folder)
    return folder


def load(**options: Any) -> CandidatePool:
    return CandidatePool.load({"mine": ModelConfig(**options)})


def adapter(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    text = json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", **settings})
    (folder / "adapter_config.json").write_text(text)
    return folder


def test_a_saved_model_loads_with_its_tokenizer(base: Path) -> None:
    pool = CandidatePool.load({"mine": str(base)})
    info = pool["mine"].info
    assert (info.name, info.family, info.context_length) == ("mine", "llama", 256)
    assert info.eos_ids == {2}
    assert info.embedding_size == 320
    assert info.bytes_per_position == 2 * 4 * 2 * 8 * 4
    assert pool["mine"].vocabulary.encode("fox") == tokenizer().encode("fox")


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "~/nowhere"])
def test_a_missing_directory_is_named(path: str) -> None:
    with pytest.raises(InputError, match="'mine'.*no directory '" + path) as caught:
        load(model=path)
    assert "check the path" in caught.value.remedy


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"'mine'.*{tmp_path}.*holds no model"):
        load(model=str(tmp_path))


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="the tokenizer of model 'mine'"):
        load(model=str(tmp_path))


@pytest.mark.parametrize("dtype", ["float99", "int8", "device"])
def test_a_bad_dtype_is_named(base: Path, dtype: str) -> None:
    with pytest.raises(InputError, match=f"dtype '{dtype}'") as caught:
        load(model=str(base), dtype=dtype)
    assert "bfloat16" in caught.value.remedy


@pytest.mark.parametrize("device", ["tpu9", "cuda:99"])
def test_a_bad_device_is_named(base: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"'mine'.*'{device}'"):
        load(model=str(base), device=device)


def test_dtypes_are_kept_apart(base: Path) -> None:
    pool = CandidatePool.load(
        {
            "full": ModelConfig(model=str(base)),
            "half": ModelConfig(model=str(base), dtype="bfloat16"),
        }
    )
    assert pool["full"].loaded is not pool["half"].loaded
    assert str(pool["half"].loaded.dtype) == "torch.bfloat16"


def test_an_adapter_that_names_no_base_is_refused(tmp_path: Path) -> None:
    alone = adapter(tmp_path / "alone")
    with pytest.raises(InputError, match="'mine' does not say which base") as caught:
        load(model=str(alone))
    assert "model: <base>" in caught.value.remedy


def test_an_adapter_whose_base_is_gone_is_refused(tmp_path: Path) -> None:
    lost = adapter(tmp_path / "lost", base_model_name_or_path="/gone/base")
    with pytest.raises(InputError, match="names the base '/gone/base', which is not there"):
        load(model=str(lost))


def test_an_adapter_may_name_its_base_from_where_it_lies(tmp_path: Path, base: Path) -> None:
    (tmp_path / "base").symlink_to(base)
    beside = adapter(tmp_path / "beside", base_model_name_or_path="../base")
    found, name = resolve_adapter(ModelConfig(model=str(beside)), "mine")
    assert Path(found).resolve() == base.resolve()
    assert name == str(beside)


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "IA3"},
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    ],
    ids=str,
)
def test_only_plain_lora_adapters_share_a_base(
    tmp_path: Path, base: Path, settings: dict[str, Any]
) -> None:
    pytest.importorskip("peft")
    other = adapter(tmp_path / "other", base_model_name_or_path=str(base), **settings)
    with pytest.raises(CapabilityError, match="only plain LoRA") as caught:
        load(model=str(other))
    assert "merge" in caught.value.remedy


def test_a_missing_adapter_is_named(base: Path) -> None:
    with pytest.raises(InputError, match="no directory '/nowhere/adapter'"):
        load(model=str(base), adapter="/nowhere/adapter")


def test_an_adapter_without_weights_is_named(tmp_path: Path, base: Path) -> None:
    pytest.importorskip("peft")
    empty = adapter(
        tmp_path / "empty", base_model_name_or_path=str(base), r=4, target_modules=["q_proj"]
    )
    with pytest.raises(InputError, match=r"'mine'.*cannot be loaded"):
        load(model=str(empty))


def test_two_candidates_of_one_name_are_refused(base: Path) -> None:
    twice = [CandidateConfig(name="a", model=str(base))] * 2
    with pytest.raises(InputError, match="two candidates are called 'a'"):
        CandidatePool.load(twice)


# -- architectures -----------------------------------------------------------------------------
def test_encoder_decoders_are_refused() -> None:
    from transformers import T5Config

    with pytest.raises(UnsupportedModelError, match=r"'mine'.*'t5'.*encoder-decoder"):
        layout_of(T5Config(), "mine", 0)


def test_unknown_recurrent_families_are_refused() -> None:
    from transformers import MiniMaxConfig

    with pytest.raises(UnsupportedModelError, match=r"'mine'.*never shown to be exact|kind"):
        layout_of(MiniMaxConfig(layer_types=["linear_attention", "full_attention"] * 16), "mine", 0)


def test_unlisted_attention_families_are_checked_on_their_own_weights() -> None:
    model = build("starcoder2")
    loaded = LoadedModel(model, "mine")
    session = loaded.new_session()
    prompts = random_ids([9, 2])
    lanes = [session.open(), session.open()]
    with session.batch(lanes) as batch:
        logits = batch.extend(prompts)
    for prompt, row in zip(prompts, logits, strict=True):
        assert greedy_alone(model, prompt, 1) == [int(row.argmax())]


def test_an_unlisted_family_that_is_not_exact_is_refused() -> None:
    model = build("starcoder2")
    attention = type(model.model.layers[0].self_attn)
    original = attention.forward

    def forgetful(self: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("past_key_values") is not None:
            options["attention_mask"] = None
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "forward", forgetful)
        with pytest.raises(UnsupportedModelError, match=r"'mine'.*'starcoder2'.*differ"):
            LoadedModel(model, "mine")


def test_attention_without_masks_is_refused() -> None:
    model = build("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="flash_attention_2") as caught:
        LoadedModel(model, "mine")
    assert "sdpa" in caught.value.remedy
