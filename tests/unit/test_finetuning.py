"""Fine-tuning: the losses by hand, what is changed, and what is learned."""

from __future__ import annotations

import gc
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from antiphon.config import ModelConfig
from antiphon.errors import CapabilityError, InputError
from antiphon.record import directory_fingerprint
from antiphon.training.finetuning import (
    ChoiceExample,
    CompletionExample,
    TrainConfig,
    finetune_choice,
    finetune_completions,
)
from antiphon.training.tasks import ChoiceTask, CompletionTask
from tests.tiny import build, random_ids, tokenizer
from tests.tuning import (
    FAMILIES,
    LABELS,
    SMALL,
    choices,
    completions,
    logits_of,
    quick,
    save_base,
    weights,
)

pytest.importorskip("accelerate")
pytest.importorskip("peft")


@pytest.fixture(scope="module", autouse=True)
def light_heap() -> Iterator[None]:
    """Every training collects garbage once; what was imported before need not be looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: save_base(folder / family, family) for family in FAMILIES}


# -- losses ------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", [*FAMILIES, "mistral", "gemma2", "mamba"])
def test_the_loss_of_choices_is_the_one_written_down(family: str) -> None:
    model = build(family, **SMALL)
    rows = random_ids([3, 9, 6])
    targets = [(0.2, 0.5, 0.3), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0)]
    labels = (30, 7, 101)
    task = ChoiceTask(labels)
    examples = [ChoiceExample(tuple(r), t, "") for r, t in zip(rows, targets, strict=True)]
    expected, right = 0.0, 0
    for ids, target in zip(rows, targets, strict=True):
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, -1].double().numpy()[list(labels)]
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        expected -= float(np.sum(target * np.log(probabilities)))
        right += target[int(scores.argmax())] == max(target)
    batch = task.collate(examples)
    with torch.no_grad():
        outcome = task.outcome(model, batch)
    assert float(outcome.loss) == pytest.approx(expected, rel=1e-4)
    assert int(outcome.right) == right
    assert task.count(batch) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_completions_leaves_prompts_out(family: str) -> None:
    model = build(family, **SMALL)
    rows = random_ids([9, 5, 7])
    starts = [3, 4, 2]
    examples = [
        CompletionExample(tuple(ids[:n]), tuple(ids[n:]), "")
        for ids, n in zip(rows, starts, strict=True)
    ]
    expected, right = 0.0, 0
    for ids, start in zip(rows, starts, strict=True):
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for place in range(start, len(ids)):
            expected -= float(scores[place - 1, ids[place]])
            right += int(scores[place - 1].argmax()) == ids[place]
    task = CompletionTask()
    batch = task.collate(examples)
    with torch.no_grad():
        outcome = task.outcome(model, batch)
    assert float(outcome.loss) == pytest.approx(expected, rel=1e-4)
    assert (int(outcome.right), task.count(batch)) == (right, 6 + 1 + 5)


def test_a_tie_counts_as_right_on_either_side() -> None:
    model = build("llama", **SMALL)
    ids = tuple(random_ids([5])[0])
    for target, right in [((0.5, 0.5), 1), ((0.0, 1.0), None), ((1.0, 0.0), None)]:
        task = ChoiceTask(LABELS)
        with torch.no_grad():
            found = int(task.outcome(model, task.collate([ChoiceExample(ids, target, "")])).right)
            best = int(model(torch.tensor([ids])).logits[0, -1, list(LABELS)].argmax())
        assert found == (right if right is not None else int(target[best] == 1))


# -- what training changes ---------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21, below
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_leaves_the_base_alone_and_changes_answers(
    family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    before = directory_fingerprint(bases[family])
    config = quick(lora_rank=4)
    report = finetune_choice(
        ModelConfig(model=str(bases[family])), choices(), LABELS, tmp_path / "out", config
    )
    assert directory_fingerprint(bases[family]) == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    ]
    settings = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(bases[family].resolve())
    assert (settings["r"], settings["lora_alpha"]) == (4, 32)
    assert settings["target_modules"] == sorted(settings["target_modules"])
    saved = load_file(tmp_path / "out/adapter_model.safetensors")
    assert report.trainable_parameters == sum(t.numel() for t in saved.values())
    ids = random_ids([7], 9)[0]
    adapted, plain = logits_of(tmp_path / "out", ids), logits_of(bases[family], ids)
    assert (adapted - plain).abs().max() > 0.01
    base = AutoModelForCausalLM.from_pretrained(bases[family], dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload()
    with torch.no_grad():
        assert torch.allclose(merged(torch.tensor([ids])).logits[0], adapted, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_training_writes_a_model_of_its_own(
    family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    before = directory_fingerprint(bases[family])
    out = tmp_path / "out"
    model = ModelConfig(model=str(bases[family]))
    report = finetune_completions(model, completions(), out, quick(method="full"))
    assert directory_fingerprint(bases[family]) == before
    assert not (out / "adapter_config.json").exists() and not (out / "checkpoints").exists()
    settings = [json.loads((p / "config.json").read_text()) for p in (bases[family], out)]
    for one in settings:
        one.pop("transformers_version")
        one.pop("_name_or_path", None)
    assert settings[0] == settings[1]
    old, new = load_file(bases[family] / "model.safetensors"), load_file(out / "model.safetensors")
    assert old.keys() == new.keys()
    assert report.trainable_parameters == sum(t.numel() for t in new.values())
    assert not any(torch.equal(old[name], new[name]) for name in old if old[name].ndim > 1)
    assert logits_of(out, [7, 8]).shape == (2, 320)


def test_weights_are_saved_in_the_type_they_came_in(tmp_path: Path) -> None:
    build("llama", **SMALL).bfloat16().save_pretrained(tmp_path / "half")
    tokenizer().save_pretrained(tmp_path / "half")
    model = ModelConfig(model=str(tmp_path / "half"))
    for name, dtype in (("auto", torch.bfloat16), ("float32", torch.float32)):
        config = quick(method="full", max_steps=2, dtype=name)
        finetune_choice(model, choices(), LABELS, tmp_path / name, config)
        saved = load_file(tmp_path / name / "model.safetensors")
        assert {t.dtype for t in saved.values()} == {dtype}


def test_named_layers_only(bases: dict[str, Path], tmp_path: Path) -> None:
    model = ModelConfig(model=str(bases["llama"]))
    config = quick(lora_targets="q_proj, v_proj", max_steps=2)
    finetune_choice(model, choices(), LABELS, tmp_path / "out", config)
    saved = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {name.split(".")[-3] for name in saved} == {"q_proj", "v_proj"}
    with pytest.raises(InputError, match=r"cannot be made ready.*nowhere") as caught:
        config = quick(lora_targets="nowhere")
        finetune_choice(model, choices(), LABELS, tmp_path / "no", config)
    assert not (tmp_path / "no").exists()
    assert "names of the layers" in caught.value.remedy


def test_nothing_is_printed_and_no_generator_moves(
    bases: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    told: list[tuple[str, int, int]] = []
    finetune_choice(
        ModelConfig(model=str(bases["gpt2"])),
        choices(),
        LABELS,
        tmp_path / "out",
        quick(),
        progress=lambda *args: told.append(args),
    )
    assert capfd.readouterr() == ("", "")
    assert told == [("training", step, 8) for step in range(9)]
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert np.random.get_state()[1].tolist() == states[2]


# -- learning ----------------------------------------------------------------------------------
@pytest.mark.parametrize("method, rate", [("lora", 1e-2), ("full", 3e-3)])
def test_a_rule_is_learned(
    method: str, rate: float, bases: dict[str, Path], tmp_path: Path
) -> None:
    examples = [
        ChoiceExample((*e.ids[:-1], 100 + e.ids[-1] % 8), e.target, e.group) for e in choices(400)
    ]
    config = TrainConfig(method=method, learning_rate=rate, epochs=12, validation_share=0.2)
    report = finetune_choice(
        ModelConfig(model=str(bases["llama"])), examples, LABELS, tmp_path / "out", config
    )
    assert report.history[0]["validation_accuracy"] < 0.95
    assert report.best_validation_accuracy is not None
    assert report.best_validation_accuracy >= 0.98
    right = 0
    for example in choices(30, seed=8):
        ids = [*example.ids[:-1], 100 + example.ids[-1] % 8]
        scores = logits_of(tmp_path / "out", ids)[-1]
        right += example.target[int(scores[list(LABELS)].argmax())] == 1
    assert right >= 28


def test_completions_are_learned_to_their_end(bases: dict[str, Path], tmp_path: Path) -> None:
    rows = random_ids([6] * 120, 4)
    examples = [
        CompletionExample(tuple(ids), (200 + ids[-1] % 4, 210, 2), f"q{number}")
        for number, ids in enumerate(rows)
    ]
    examples = [
        CompletionExample((*e.prompt[:-1], 100 + e.completion[0] - 200), e.completion, e.group)
        for e in examples
    ]
    config = quick(method="full", epochs=10, learning_rate=5e-3)
    out = tmp_path / "out"
    report = finetune_completions(ModelConfig(model=str(bases["llama"])), examples, out, config)
    assert report.best_validation_accuracy == 1
    assert report.best_validation_loss is not None and report.best_validation_loss < 0.1
    model = AutoModelForCausalLM.from_pretrained(out)
    prompt = torch.tensor([[*random_ids([5], 77)[0], 103]])
    written = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False
    )
    assert written[0, 6:].tolist() == [203, 210, 2]


@pytest.mark.parametrize(
    "over", [{"micro_batch_size": 2}, {"gradient_checkpointing": True}], ids=["micro", "checkpoint"]
)
@pytest.mark.parametrize("kind", ["choice", "completions"])
def test_memory_is_saved_without_other_results(
    kind: str, over: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    found = []
    for name, more in (("plain", {}), ("saving", over)):
        # 11 or 7 rows a last batch: its parts weigh what they hold.
        config = quick(method="full", epochs=1, batch_size=16, learning_rate=1e-3, **more)
        model, out = ModelConfig(model=str(bases["llama"])), tmp_path / name
        if kind == "choice":
            report = finetune_choice(model, choices(34), LABELS, out, config)
        else:
            report = finetune_completions(model, completions(29), out, config)
        found.append((report, load_file(out / "model.safetensors")))
    (plain, first), (saving, second) = found
    losses = [report.history[0]["train_loss"] for report in (plain, saving)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    start = load_file(bases["llama"] / "model.safetensors")
    for name in first:
        moved = (first[name] - start[name]).norm()
        assert (first[name] - second[name]).norm() <= 0.02 * moved + 1e-6


@pytest.mark.parametrize("method", ["lora", "full"])
def test_activations_are_computed_twice(
    method: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls: list[int] = []
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda *a: (calls.append(1), forward(*a))[1])
    counts = []
    for checkpointing in (False, True):
        config = quick(
            method=method,
            max_steps=3,
            validation_share=0.0,
            gradient_checkpointing=checkpointing,
        )
        calls.clear()
        model, out = ModelConfig(model=str(bases["llama"])), tmp_path / str(checkpointing)
        finetune_choice(model, choices(), LABELS, out, config)
        counts.append(len(calls))
    assert counts == [2 * 3, 2 * 2 * 3]  # layers, steps


@pytest.mark.parametrize(
    "over",
    [
        {"weight_decay": 5.0},
        {"max_grad_norm": 0.01},
        {"warmup_ratio": 0.9},
        {"schedule": "constant"},
        {"final_share": 0.0},
        {"lora_alpha": 1},
        {"lora_dropout": 0.5},
        {"batch_size": 16},
    ],
    ids=str,
)
def test_settings_reach_the_training(
    over: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    model = ModelConfig(model=str(bases["llama"]))
    for name, more in (("plain", {}), ("other", over)):
        finetune_choice(model, choices(), LABELS, tmp_path / name, quick(max_steps=4, **more))
    assert weights(tmp_path / "plain") != weights(tmp_path / "other")


# -- adapters as a start -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def adapter(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapters") / "first"
    model = ModelConfig(model=str(bases["llama"]))
    finetune_choice(model, choices(seed=3), LABELS, out, quick(lora_rank=4, lora_alpha=4))
    return out


def with_base(adapter: Path, copy: Path, base: str) -> Path:
    """A copy of an adapter that names another base."""
    shutil.copytree(adapter, copy)
    settings = json.loads((copy / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = base
    (copy / "adapter_config.json").write_text(json.dumps(settings))
    return copy


def test_an_adapter_is_merged_for_full_training(adapter: Path, tmp_path: Path) -> None:
    config = quick(method="full", max_steps=1, learning_rate=1e-9, weight_decay=0)
    out = tmp_path / "out"
    report = finetune_choice(ModelConfig(model=str(adapter)), choices(), LABELS, out, config)
    assert report.trainable_parameters == 39_072  # all of them
    assert not list(out.glob("adapter*"))
    ids = random_ids([6], 5)[0]
    assert torch.allclose(logits_of(out, ids), logits_of(adapter, ids), atol=1e-3)


def test_an_adapter_is_trained_on(adapter: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    before = directory_fingerprint(adapter)
    (tmp_path / "base").symlink_to(bases["llama"])
    beside = with_base(adapter, tmp_path / "beside", "../base")
    for name, rate in (("still", 1e-9), ("out", 1e-2)):
        config = quick(max_steps=4, learning_rate=rate, weight_decay=0)
        finetune_choice(ModelConfig(model=str(beside)), choices(), LABELS, tmp_path / name, config)
    assert directory_fingerprint(adapter) == before
    settings = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 4)
    assert settings["base_model_name_or_path"] == str(bases["llama"].resolve())
    ids = random_ids([6], 5)[0]
    first = logits_of(adapter, ids)
    assert torch.allclose(logits_of(tmp_path / "still", ids), first, atol=1e-3)
    assert (logits_of(tmp_path / "out", ids) - first).abs().max() > 0.01


def test_an_adapter_without_its_base_is_refused_before_anything(
    adapter: Path, tmp_path: Path
) -> None:
    lost = with_base(adapter, tmp_path / "lost", "/gone/base")
    with pytest.raises(InputError, match="names the base '/gone/base', which is not there"):
        finetune_choice(ModelConfig(model=str(lost)), choices(), LABELS, tmp_path / "o", quick())
    assert not (tmp_path / "o").exists()


def test_only_lora_adapters_are_trained_on(bases: dict[str, Path], tmp_path: Path) -> None:
    other = {"peft_type": "IA3", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    other |= {"base_model_name_or_path": str(bases["llama"]), "feedforward_modules": []}
    (tmp_path / "ia3").mkdir()
    (tmp_path / "ia3/adapter_config.json").write_text(json.dumps(other))
    model = ModelConfig(model=str(tmp_path / "ia3"))
    with pytest.raises(CapabilityError, match="of the kind IA3") as caught:
        finetune_choice(model, choices(), LABELS, tmp_path / "out", quick())
    assert "merge" in caught.value.remedy


# -- refusals ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "example, labels, match",
    [
        (ChoiceExample((), (1.0, 0.0), "b"), LABELS, "example 3 has no prompt"),
        (ChoiceExample((7,), (1.0,), "b"), LABELS, "example 3 has 1 probabilities for 2 labels"),
        (ChoiceExample((7,), (0.7, 0.7), "b"), LABELS, "example 3 has the target"),
        (ChoiceExample((7,), (1.5, -0.5), "b"), LABELS, "example 3 has the target"),
        (ChoiceExample((7, 320), (1.0, 0.0), "b"), LABELS, "example 3 holds the token id 320"),
        (ChoiceExample((7,), (1.0, 0.0), "b"), (20, 20), r"label ids are \[20, 20\]"),
        (ChoiceExample((7,), (1.0, 0.0), "b"), (20,), "two or more"),
        (ChoiceExample((7,), (1.0, 0.0), "b"), (20, 999), "token id 999"),
    ],
)
def test_bad_choices_are_named(
    example: ChoiceExample, labels: Any, match: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = ModelConfig(model=str(bases["llama"]))
    with pytest.raises(InputError, match=match):
        finetune_choice(model, [*choices(2), example], labels, tmp_path / "out", quick())
    assert not (tmp_path / "out").exists()


def test_empty_completions_are_named(bases: dict[str, Path], tmp_path: Path) -> None:
    model = ModelConfig(model=str(bases["llama"]))
    bad = CompletionExample((5, 6), (), "x")
    with pytest.raises(InputError, match="example 2 has no completion"):
        finetune_completions(model, [completions(1)[0], bad], tmp_path / "out", quick())


def test_long_examples_are_left_out_and_counted(bases: dict[str, Path], tmp_path: Path) -> None:
    model = ModelConfig(model=str(bases["llama"]))
    [long] = random_ids([257])  # the model reads 256
    examples = [*choices(20), ChoiceExample(tuple(long), (1.0, 0.0), "long")]
    report = finetune_choice(model, examples, LABELS, tmp_path / "a", quick(max_steps=1))
    assert report.left_out == 1
    limit = quick(max_steps=1, max_length=8)
    report = finetune_choice(model, examples, LABELS, tmp_path / "b", limit)
    assert report.left_out == sum(len(e.ids) > 8 for e in examples) > 1
    with pytest.raises(InputError, match="none of 21 examples has at most 2 tokens"):
        finetune_choice(model, examples, LABELS, tmp_path / "c", quick(max_length=2))


@pytest.mark.parametrize(
    "over, match",
    [
        ({"max_steps": 0}, "max_steps"),
        ({"batch_size": 32, "micro_batch_size": 5}, "must divide"),
        ({"rank": 3}, "rank"),
        ({"dtype": "float16"}, "float32"),
        ({"validation_share": 1}, "less than 1"),
    ],
)
def test_bad_settings_are_refused(over: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TrainConfig(**over)


def test_what_is_missing_is_named(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(model=str(bases["llama"]))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="'cuda', which this machine does not have"):
            finetune_choice(model, choices(), LABELS, tmp_path / "o", quick(device="cuda"))
    quantized = ModelConfig(model=str(bases["llama"]), quantization={"load_in_4bit": True})
    with pytest.raises(CapabilityError, match="quantized"):
        finetune_choice(quantized, choices(), LABELS, tmp_path / "o", quick())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match="accelerate and peft") as caught:
        finetune_choice(model, choices(), LABELS, tmp_path / "o", quick())
    assert "antiphon[adapters]" in caught.value.remedy


def test_every_setting_is_explained() -> None:
    assert all(field.description for field in TrainConfig.model_fields.values())


def test_settings_are_read_without_torch() -> None:
    code = "import sys, antiphon.training.finetuning; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "peft", "numpy"} & set(out.stdout.split())
