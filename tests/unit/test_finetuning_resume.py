"""Fine-tuning in order: split, batches, interruptions, early stops, and what is left on disk."""

from __future__ import annotations

import gc
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from antiphon.backends.loading import Loader
from antiphon.config import ModelConfig
from antiphon.errors import AntiphonError, InputError
from antiphon.record import directory_fingerprint
from antiphon.training.finetuning import (
    ChoiceExample,
    TrainConfig,
    TrainReport,
    finetune_choice,
    split_by_group,
)
from antiphon.training.tasks import ChoiceTask
from tests.tuning import FAMILIES, LABELS, choices, quick, save_base, weights

pytest.importorskip("accelerate")
pytest.importorskip("peft")

from antiphon.training import trainer as loop
from antiphon.training.output import Output
from antiphon.training.start import Start
from antiphon.training.trainer import LengthBatches, learning_rate_share, out_of_patience


@pytest.fixture(scope="module", autouse=True)
def light_heap() -> Iterator[None]:
    """Every training collects garbage once; what was imported before need not be looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models, by family, with one tokenizer."""
    folder = tmp_path_factory.mktemp("bases")
    return {family: save_base(folder / family, family) for family in FAMILIES}


# -- order, split, schedule --------------------------------------------------------------------
def test_no_group_is_on_both_sides() -> None:
    examples = choices(100)
    train, held = split_by_group(examples, 0.1, seed=0)
    assert len({e.group for e in held}) == 5 and len(held) == 10
    assert not {e.group for e in held} & {e.group for e in train}
    assert sorted(map(str, train + held)) == sorted(map(str, examples))
    shuffled = random.Random(3).sample(examples, len(examples))
    assert {e.group for e in split_by_group(shuffled, 0.1, 0)[1]} == {e.group for e in held}
    assert {e.group for e in split_by_group(examples, 0.1, 1)[1]} != {e.group for e in held}


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_two_groups_are_split_whatever_the_share(share: float) -> None:
    train, held = split_by_group(choices(4), share, seed=0)
    assert (len(train), len(held)) == (2, 2)


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(InputError, match="2 examples of 1 group") as caught:
        split_by_group(choices(2), 0.1, 0)
    assert "two groups" in caught.value.remedy
    with pytest.raises(InputError, match="share is 1"):
        split_by_group(choices(4), 1, 0)


def test_batches_hold_every_example_once_and_like_lengths() -> None:
    lengths = random.Random(0).choices(range(1, 100), k=105)
    sampler = LengthBatches(lengths, 8, 4, seed=5, epoch=lambda: 2)
    batches = sampler.batches(2)
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(105))
    assert [len(b) for b in batches] == [8] * 13 + [1]
    assert batches == sampler.batches(2) != sampler.batches(3)
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches[:-1]]
    assert np.mean(spread) < 40  # of random batches of 8: about 77
    micro = list(sampler)
    assert [index for batch in micro for index in batch] == flat
    assert len(micro) == len(sampler) == 27


def test_the_learning_rate_rises_and_falls_to_a_share() -> None:
    config = TrainConfig(warmup_ratio=0.1, final_share=0.2)
    shares = [learning_rate_share(config, 100, step) for step in range(101)]
    assert shares[:11] == pytest.approx([(n + 1) / 11 for n in range(11)])
    assert shares[55] == pytest.approx(0.6) and shares[100] == pytest.approx(0.2)
    cosine = config.model_copy(update={"schedule": "cosine"})
    assert learning_rate_share(cosine, 100, 55) == pytest.approx(0.6)
    assert learning_rate_share(cosine, 100, 32) > shares[32]
    constant = config.model_copy(update={"schedule": "constant"})
    assert learning_rate_share(constant, 100, 99) == 1


@pytest.mark.parametrize("cut", [None, 7], ids=["whole", "resumed"])
def test_every_epoch_has_its_own_order(
    cut: int | None, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = ModelConfig(model=str(bases["llama"])), tmp_path / "out"
    seen: list[Any] = []
    collate = ChoiceTask.collate
    monkeypatch.setattr(ChoiceTask, "collate", lambda *a: (seen.append(a[1]), collate(*a))[1])
    config = quick(epochs=3, validation_share=0.0, evaluate_every=3, seed=4)
    if cut:
        with pytest.raises(Stopped):
            finetune_choice(model, choices(20), LABELS, out, config, progress=stop_at(cut))
        seen.clear()
    finetune_choice(model, choices(20), LABELS, out, config)
    sampler = LengthBatches([len(e.ids) for e in choices(20)], 8, 8, 4, lambda: 0)
    expected = [[choices(20)[i] for i in b] for epoch in range(3) for b in sampler.batches(epoch)]
    assert len(expected) == 9
    done = 6 if cut else 0  # the last checkpoint before the cut
    assert seen[-(9 - done) :] == expected[done:]


# -- repeating and resuming --------------------------------------------------------------------
class Stopped(Exception):
    """Ends a run from its progress callback."""


def stop_at(step: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done == step:
            raise Stopped

    return progress


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_same_training_gives_the_same_bytes(
    method: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = ModelConfig(model=str(bases["gpt2"]))  # its dropout draws random numbers
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = quick(method=method, seed=seed)
        report = finetune_choice(model, choices(), LABELS, tmp_path / name, config)
        torch.rand(3)  # what was drawn before does not matter
        found.append((weights(tmp_path / name), report.history))
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize(
    "method, over",
    [
        ("lora", {"evaluate_every": 2}),
        ("full", {"evaluate_every": 3, "micro_batch_size": 4}),
        ("lora", {"validation_share": 0.0, "lora_dropout": 0.1}),
    ],
    ids=["lora", "full", "no validation"],
)
def test_an_interrupted_training_ends_as_if_it_was_not(
    method: str, over: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    model = ModelConfig(model=str(bases["gpt2"]))
    config = quick(method=method, epochs=3, **over)  # 4 or 5 steps an epoch
    whole = finetune_choice(model, choices(), LABELS, tmp_path / "whole", config)
    out = tmp_path / "cut"
    for step in (5, 8, 11):
        with pytest.raises(Stopped):
            finetune_choice(model, choices(), LABELS, out, config, progress=stop_at(step))
        assert not (out / "training.json").exists() and not list(out.glob("*config.json"))
    states = [json.loads(path.read_text()) for path in out.rglob("trainer_state.json")]
    before = max(entry["seconds"] for state in states for entry in state["log_history"])
    told: list[int] = []
    again = finetune_choice(
        model, choices(), LABELS, out, config, progress=lambda _, done, __: told.append(done)
    )
    assert told[0] >= 5 and again.seconds > before
    assert weights(out) == weights(tmp_path / "whole")
    assert {**again.to_dict(), "seconds": 0} == {**whole.to_dict(), "seconds": 0}


def test_torn_checkpoints_are_skipped(bases: dict[str, Path], tmp_path: Path) -> None:
    model = ModelConfig(model=str(bases["llama"]))
    config = quick(epochs=3, evaluate_every=2, patience=0)
    finetune_choice(model, choices(), LABELS, tmp_path / "whole", config)
    out = tmp_path / "cut"
    with pytest.raises(Stopped):
        finetune_choice(model, choices(), LABELS, out, config, progress=stop_at(7))
    good = out / "checkpoints/checkpoint-6"
    shutil.copytree(good, out / "checkpoints/checkpoint-8")  # cut in the middle of a file
    torn = out / "checkpoints/checkpoint-8/adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    shutil.copytree(good, out / "checkpoints/checkpoint-10")  # cut before the last file
    for name in ("files.json", "trainer_state.json", "optimizer.pt"):
        (out / "checkpoints/checkpoint-10" / name).unlink()
    (out / "checkpoints/checkpoint-12").mkdir()
    told: list[int] = []
    finetune_choice(
        model, choices(), LABELS, out, config, progress=lambda _, done, __: told.append(done)
    )
    assert told == list(range(6, 13))
    assert weights(out) == weights(tmp_path / "whole")


def test_killed_while_the_result_is_moved(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = ModelConfig(model=str(bases["llama"])), tmp_path / "out"
    moved: list[str] = []
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if self.parent.name == "result":
            if len(moved) == 2:
                raise Stopped
            moved.append(self.name)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Stopped):
            finetune_choice(model, choices(), LABELS, out, quick(method="full"))
    with pytest.raises(InputError, match="holds no model"):
        Loader().load(ModelConfig(model=str(out)), "x")
    monkeypatch.setattr(loop.FineTuner, "train", None)  # only the saving is done again
    finetune_choice(model, choices(), LABELS, out, quick(method="full"))
    Loader().load(ModelConfig(model=str(out)), "x")
    assert not (out / "checkpoints").exists()


def test_a_finished_training_is_not_repeated(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = ModelConfig(model=str(bases["llama"])), tmp_path / "out"
    first = finetune_choice(model, choices(), LABELS, out, quick())
    before = directory_fingerprint(out)
    (out / "checkpoints").mkdir()  # as if killed between the report and the tidying up
    with monkeypatch.context() as patch:
        patch.setattr(Start, "load", None)
        assert finetune_choice(model, choices(), LABELS, out, quick(device="cpu")) == first
    assert directory_fingerprint(out) == before
    assert not (out / "checkpoints").exists()
    content = json.loads((out / "training.json").read_text())
    assert content["config"]["learning_rate"] == 3e-3
    assert content["environment"]["torch"] == torch.__version__
    assert TrainReport(**content["report"]) == first


def test_another_training_does_not_go_into_the_same_directory(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model, out = ModelConfig(model=str(bases["llama"])), tmp_path / "out"

    def refused(match: str, *, examples: Any = None, labels: Any = LABELS, **over: Any) -> None:
        config = quick(epochs=3, evaluate_every=2, **over)
        with pytest.raises(InputError, match=match) as caught:
            finetune_choice(model, examples or choices(), labels, out, config)
        assert "--overwrite" in caught.value.remedy

    config = quick(epochs=3, evaluate_every=2)
    with pytest.raises(Stopped):
        finetune_choice(model, choices(), LABELS, out, config, progress=stop_at(5))
    for _ in range(2):  # unfinished, then finished
        refused(
            r"differs: lora_rank: 16, now 8; seed: 0, now 7\n",
            lora_rank=8,
            seed=7,
        )
        refused(r"differs: examples\n", examples=choices(38))
        refused(r"differs: task or labels\n", labels=(20, 22))
        finetune_choice(model, choices(), LABELS, out, config)
    other = ModelConfig(model=str(bases["qwen2"]))
    with pytest.raises(InputError, match=r"differs: start model\n"):
        finetune_choice(other, choices(), LABELS, out, config)


def test_a_training_without_checkpoints_claims_nothing(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "out/checkpoints").mkdir(parents=True)  # killed before its first checkpoint
    (tmp_path / "out/checkpoints/plan.json").write_text('{"examples": "others"}')
    model = ModelConfig(model=str(bases["llama"]))
    report = finetune_choice(model, choices(), LABELS, tmp_path / "out", quick(max_steps=1))
    assert report.steps == 1


def test_overwriting_leaves_nothing_of_the_other_training(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model, out = ModelConfig(model=str(bases["llama"])), tmp_path / "out"
    finetune_choice(model, choices(), LABELS, out, quick())
    (out / "notes.txt").write_text("mine")
    config = quick(method="full")
    with pytest.raises(Stopped):
        finetune_choice(model, choices(), LABELS, out, config, overwrite=True, progress=stop_at(1))
    assert {p.name for p in out.iterdir()} == {"notes.txt"}
    finetune_choice(model, choices(), LABELS, out, config)
    assert not list(out.glob("adapter*"))
    assert (out / "model.safetensors").exists() and (out / "notes.txt").read_text() == "mine"


def test_a_directory_of_something_else_is_left_alone(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = ModelConfig(model=str(bases["llama"]))
    before = directory_fingerprint(bases["qwen2"])
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds config\.json and no training"):
            finetune_choice(model, choices(), LABELS, bases["qwen2"], quick(), overwrite=overwrite)
    assert directory_fingerprint(bases["qwen2"]) == before
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        finetune_choice(model, choices(), LABELS, tmp_path / "file", quick())
    theirs = tmp_path / "theirs/checkpoints/checkpoint-10"
    theirs.mkdir(parents=True)
    with pytest.raises(InputError, match="holds checkpoints/checkpoint-10"):
        finetune_choice(model, choices(), LABELS, tmp_path / "theirs", quick())
    (tmp_path / "theirs/training.json").write_text("[]")
    with pytest.raises(InputError, match="not written by a training"):
        finetune_choice(model, choices(), LABELS, tmp_path / "theirs", quick(), overwrite=True)
    assert theirs.is_dir()


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    plan = {"format": 1, "task": {}, "examples": "", "model": {}, "config": {}}
    with Output(tmp_path / "out", plan), pytest.raises(InputError, match="another run"):
        Output(tmp_path / "out", plan)
    with Output(tmp_path / "out", plan) as output:
        assert output.report is None


# -- the best weights --------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["lora", "full"])
def test_early_stopping_keeps_the_best_weights(
    method: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    noise = choices(60)
    coin = random.Random(5)
    noise = [ChoiceExample(e.ids, coin.choice([(0.0, 1.0), (1.0, 0.0)]), e.group) for e in noise]
    model = ModelConfig(model=str(bases["llama"]))
    options: dict[str, Any] = {"method": method, "schedule": "constant", "warmup_ratio": 0.0}
    config = quick(epochs=20, patience=2, evaluate_every=2, **options)
    report = finetune_choice(model, noise, LABELS, tmp_path / "long", config)
    losses = [entry["validation_loss"] for entry in report.history]
    assert report.stopped_early and report.steps == report.best_step + 4 < 120
    assert report.best_validation_loss == min(losses) < losses[-1]
    # The same steps with no more after them.
    config = quick(max_steps=report.best_step, patience=2, evaluate_every=2, **options)
    short = finetune_choice(model, noise, LABELS, tmp_path / "short", config)
    assert short.history == report.history[: len(short.history)]
    assert weights(tmp_path / "short") == weights(tmp_path / "long")


def test_a_stopped_training_is_not_trained_on(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = ModelConfig(model=str(bases["llama"])), tmp_path / "out"
    config = quick(epochs=30, patience=1, learning_rate=0.05, evaluate_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(Start, "save", lambda *_: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            finetune_choice(model, choices(), LABELS, out, config)
    kept = {p.name for p in (out / "checkpoints").glob("checkpoint-*")}
    monkeypatch.setattr(loop.FineTuner, "train", None)
    report = finetune_choice(model, choices(), LABELS, out, config)
    assert report.stopped_early
    assert kept == {f"checkpoint-{report.best_step}", f"checkpoint-{report.steps}"}


def test_without_validation_the_last_weights_are_kept(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    alone = [ChoiceExample(e.ids, e.target, "one") for e in choices(20)]
    config = quick(validation_share=0.0, max_steps=5, evaluate_every=2)
    report = finetune_choice(
        ModelConfig(model=str(bases["llama"])), alone, LABELS, tmp_path / "out", config
    )
    assert (report.train_examples, report.validation_examples) == (20, 0)
    assert (report.steps, report.best_step, report.stopped_early) == (5, 5, False)
    assert report.best_validation_loss is None
    assert [entry["step"] for entry in report.history] == [2, 4, 5]
    assert all(math.isfinite(entry["train_loss"]) for entry in report.history)
    assert report.seconds > 0


def test_a_diverging_training_says_so(bases: dict[str, Path], tmp_path: Path) -> None:
    config = quick(method="full", learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0)
    with pytest.raises(AntiphonError, match="diverged") as caught:
        finetune_choice(
            ModelConfig(model=str(bases["llama"])), choices(), LABELS, tmp_path / "out", config
        )
    assert "lower learning rate" in caught.value.remedy


def test_patience_counts_from_the_best_evaluation() -> None:
    def log(*losses: float) -> list[dict[str, Any]]:
        return [{"loss": 1.0}, *({"eval_loss": loss} for loss in losses)]

    assert not out_of_patience(log(), 2)
    assert not out_of_patience(log(3, 2, 2.5), 2)
    assert out_of_patience(log(3, 2, 2.5, 2.0), 2)
    assert not out_of_patience(log(3, 2, 2.5, 2.4, 1.9), 2)
    assert not out_of_patience(log(1, 2, 3, 4), 0)
