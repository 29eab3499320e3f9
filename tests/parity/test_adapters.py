"""LoRA adapters over one base: loaded once, computed in one batch, each row as if alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from antiphon.backends.transformers import TransformersBackend
from antiphon.config import CandidateConfig, ModelConfig, PromptConfig
from antiphon.decoding.boundaries import EveryTokens
from antiphon.decoding.policies import Fixed, RoundRobin, Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.switcher import LMSwitcher
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.types import GREEDY, SamplingParams
from tests.tiny import build, greedy_alone, tokenizer, written

peft = pytest.importorskip("peft")

# PEFT 0.21 asks transformers 5 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

RAW = PromptConfig(kind="raw", add_bos=False)
QUERIES = ["the quick brown fox", "a", "what is two plus two", "over the river"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, and three adapters over it with random weights."""
    folder = tmp_path_factory.mktemp("models")
    model = build("llama")
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder / "base")
    tokens = tokenizer.__wrapped__()
    tokens.eos_token = None
    tokens.save_pretrained(folder / "base")
    for seed, name in enumerate(("red", "blue", "green")):
        base = type(model).from_pretrained(folder / "base")
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=4,
            lora_alpha=16,
            target_modules=["q_proj", "v_proj", "down_proj"],
            task_type="CAUSAL_LM",
        )
        adapted = peft.get_peft_model(base, config)
        with torch.no_grad():
            for key, weights in adapted.named_parameters():
                if "lora_B" in key:  # zeros at first: an adapter that changes nothing
                    weights.normal_(std=0.5)
        adapted.save_pretrained(folder / name)
    return folder


def config(path: Path, **more: object) -> ModelConfig:
    return ModelConfig(model=str(path), prompt=RAW, **more)


def load(folder: Path, *names: str, sampling: SamplingParams = GREEDY) -> CandidatePool:
    return CandidatePool.load({n: config(folder / n) for n in names}, sampling=sampling)


def merged(folder: Path, name: str) -> object:
    """The adapter merged into its base, by PEFT alone."""
    base = type(build("llama")).from_pretrained(folder / "base")
    if name == "base":
        return base.eval()
    return peft.PeftModel.from_pretrained(base, folder / name).merge_and_unload().eval()


ORDERS = [
    ("base", "red", "blue"),
    ("red", "base", "blue"),
    ("blue", "red"),
    ("red", "blue", "green", "base"),
]


@pytest.mark.parametrize("names", ORDERS, ids="-".join)
def test_adapters_and_their_base_share_one_set_of_weights(
    folder: Path, names: tuple[str, ...]
) -> None:
    pool = load(folder, *names)
    backends = [pool[name] for name in names]
    assert all(isinstance(made, TransformersBackend) for made in backends)
    assert len({id(made.loaded) for made in backends}) == 1
    adapters = [made.adapter for name, made in zip(names, backends, strict=True) if name != "base"]
    assert None not in adapters
    assert len(set(adapters)) == len(adapters)


@pytest.mark.parametrize("names", ORDERS, ids="-".join)
def test_each_adapter_writes_what_its_merged_model_writes(
    folder: Path, names: tuple[str, ...]
) -> None:
    pool = load(folder, *names)
    texts = set()
    for name in names:
        method = SwitchGeneration(pool, Fixed(name), max_new_tokens=20, boundary=EveryTokens(7))
        model = merged(folder, name)
        for query, done in zip(QUERIES, method.generate(QUERIES), strict=True):
            prompt = tokenizer().encode(query, add_special_tokens=False)
            assert written(done) == greedy_alone(model, prompt, 20)
            texts.add(done.text)
    assert len(texts) == len(names) * len(QUERIES), "adapters change what is written"


@pytest.mark.parametrize("policy", [Uniform(), RoundRobin()], ids=["uniform", "round robin"])
def test_rows_of_many_adapters_in_one_batch_are_as_if_alone(folder: Path, policy: object) -> None:
    pool = load(folder, "base", "red", "blue", sampling=SamplingParams())
    method = SwitchGeneration(pool, policy, max_new_tokens=24, boundary=EveryTokens(4))
    together = method.generate(QUERIES, seeds=[3, 1, 4, 2])
    writers = {part.candidate for done in together for part in done.segments}
    assert writers == {"base", "red", "blue"}
    for query, seed, done in zip(QUERIES, [3, 1, 4, 2], together, strict=True):
        (alone,) = method.generate([query], seeds=[seed])
        assert alone.segments == done.segments


def test_mixed_batches_equal_separate_models(folder: Path) -> None:
    """Greedy turns of adapters equal the same turns of merged models, one row at a time."""
    pool = load(folder, "base", "red", "blue")
    models = {name: merged(folder, name) for name in pool}
    method = SwitchGeneration(pool, Uniform(), max_new_tokens=24, boundary=EveryTokens(4))
    for query, done in zip(QUERIES, method.generate(QUERIES), strict=True):
        ids = tokenizer().encode(query, add_special_tokens=False)
        for part in done.segments:
            want = greedy_alone(models[part.candidate], ids, len(part.token_ids))
            assert list(part.token_ids) == want
            ids = ids + want


def test_a_switcher_adapter_shares_the_base_too(folder: Path) -> None:
    pool = load(folder, "red", "blue")
    switcher = pool.loader.load(config(folder / "green"), "switcher")
    assert switcher.loaded is pool["red"].loaded
    assert switcher.adapter not in (pool["red"].adapter, pool["blue"].adapter, None)
    method = SwitchGeneration(
        pool, LMSwitcher(switcher, top_p=None), max_new_tokens=1, boundary=EveryTokens(1)
    )
    alone = CandidatePool.load({"s": config(folder / "green")})["s"]
    policy = LMSwitcher(alone, top_p=None)
    apart = SwitchGeneration(
        load(folder, "red", "blue"), policy, max_new_tokens=1, boundary=EveryTokens(1)
    )
    for one, two in zip(method.generate(QUERIES), apart.generate(QUERIES), strict=True):
        assert one.segments[0].probabilities == pytest.approx(
            dict(two.segments[0].probabilities), abs=1e-5
        )


def test_one_adapter_under_two_names_is_loaded_once(folder: Path) -> None:
    pool = CandidatePool.load(
        {
            "red": config(folder / "red"),
            "explicit": ModelConfig(
                model=str(folder / "base"), adapter=str(folder / "red"), prompt=RAW
            ),
        }
    )
    assert pool["red"].loaded is pool["explicit"].loaded
    assert pool["red"].adapter == pool["explicit"].adapter


def test_the_spelling_of_a_path_does_not_load_the_weights_twice(folder: Path) -> None:
    pool = CandidatePool.load(
        {
            "one": config(folder / "base"),
            "two": ModelConfig(model=f"{folder}/base/", prompt=RAW),
            "three": ModelConfig(model=str(folder / "red" / ".." / "base"), prompt=RAW),
        }
    )
    assert len({id(pool[name].loaded) for name in pool}) == 1


def test_candidates_may_have_their_own_sampling(folder: Path) -> None:
    pool = CandidatePool.load(
        [
            CandidateConfig(name="cold", model=str(folder / "base"), sampling={"temperature": 0}),
            CandidateConfig(name="warm", model=str(folder / "base")),
        ],
        sampling=SamplingParams(temperature=0.4),
    )
    cold, warm = pool.candidates()
    assert cold.sampling.greedy
    assert warm.sampling.temperature == 0.4
