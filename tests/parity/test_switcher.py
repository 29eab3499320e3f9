"""The LM switcher's probabilities equal one uncached call on the whole tagged prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from antiphon.backends.transformers import LoadedModel, TransformersBackend
from antiphon.decoding.boundaries import EveryTokens
from antiphon.decoding.policies import select
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.switcher import LMSwitcher, SwitcherPrompt
from antiphon.errors import InputError
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.types import FORCED, GREEDY, Completion, SamplingParams
from tests.scripted import Scripted, letters, says
from tests.tiny import backend, build, fresh_logits, loaded, random_ids, three, tokenizer

QUERIES = ["the quick brown fox", "what is two plus two?", "a"]
SEGMENT = 4
QUESTION = (
    " Which model should generate the next segment? Please respond with a {kind} from {first} to "
    "{last}. The answer is model "
)


def long_switcher(
    kind: str = "llama", *, tokens: Any = None, size: int = 320
) -> TransformersBackend:
    """A switcher with room for many tags."""
    model = LoadedModel(
        build(kind, seed=9, vocabulary=size, max_position_embeddings=2048), "switcher"
    )
    return backend("switcher", model, tokens=tokens)


def brute_force(
    switcher: TransformersBackend,
    prompt: list[int],
    question: str,
    labels: list[str],
    temperature: float = 1.0,
) -> np.ndarray[Any, Any]:
    """Each label's probability after ``prompt`` and the question: every token on its own, each
    by a call that starts from nothing; then normalised over the labels."""
    encode = switcher.vocabulary.encode
    scores = []
    whole = [encode(question + label) for label in labels]
    shared = 0
    while len({tuple(ids[: shared + 1]) for ids in whole}) == 1:
        shared += 1
    for ids in whole:
        score = 0.0
        for place in range(shared, len(ids)):
            logits = fresh_logits(switcher.loaded.model, prompt + ids[:place])
            score += float(logits.double().log_softmax(-1)[ids[place]])
        scores.append(score)
    weights = np.exp((np.array(scores) - max(scores)) / temperature)
    return weights / weights.sum()


def tagged(switcher: TransformersBackend, query: str, segments: list[Any], names: str) -> list[int]:
    """The prompt as the paper lays it out, piece by piece."""
    encode = switcher.vocabulary.encode
    ids = encode(query)
    for segment in segments:
        if segment.candidate == FORCED:
            ids += segment.token_ids
            continue
        label = str(names.index(segment.candidate))
        ids += encode(f" <model {label} begins> ")
        ids += list(segment.token_ids)
        ids += encode(f" <model {label} ends>")
    return ids


def check_probabilities(
    switcher: TransformersBackend, done: list[Completion], names: str = "abc"
) -> int:
    """Compare every decision of every row; returns how many there were."""
    question = QUESTION.format(kind="number", first=0, last=len(names) - 1)
    decisions = 0
    for query, completion in zip(QUERIES, done, strict=True):
        for place, segment in enumerate(completion.segments):
            if not segment.probabilities:
                continue
            prompt = tagged(switcher, query, list(completion.segments[:place]), names)
            want = brute_force(switcher, prompt, question, [str(i) for i in range(len(names))])
            got = [segment.probabilities[name] for name in names]
            assert got == pytest.approx(want, abs=1e-4)
            decisions += 1
    return decisions


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "lfm2"])
def test_probabilities_equal_an_uncached_call(kind: str) -> None:
    switcher = long_switcher(kind)
    policy = LMSwitcher(switcher, prompt=SwitcherPrompt())
    method = SwitchGeneration(
        three(sampling=SamplingParams()), policy, max_new_tokens=16, boundary=EveryTokens(SEGMENT)
    )
    done = method.generate(QUERIES)
    assert check_probabilities(switcher, done) == 4 * len(QUERIES)
    spread = {round(s.probabilities["a"], 3) for c in done for s in c.segments}
    assert len(spread) > 6, "probabilities differ, so a wrong prompt would show"


def test_the_trace_is_read_once() -> None:
    switcher = long_switcher()
    method = SwitchGeneration(
        three(sampling=SamplingParams()),
        LMSwitcher(switcher),
        max_new_tokens=20,
        boundary=EveryTokens(SEGMENT),
    )
    encode = switcher.vocabulary.encode
    # The labels' first tokens follow the question; what all labels share belongs to it.
    whole = [encode(QUESTION.format(kind="number", first=0, last=2) + label) for label in "012"]
    shared = sum(
        len({ids[: n + 1] for ids in map(tuple, whole)}) == 1 for n in range(len(whole[0]))
    )
    for query, done in zip(QUERIES, method.generate(QUERIES), strict=True):
        usage = done.usage["switcher"]
        assert usage.decisions == len(done.segments) == 5
        read = tagged(switcher, query, list(done.segments[:-1]), "abc")
        assert usage.prefill_positions == len(read) + 5 * shared
        assert usage.decode_positions == 0


def test_the_first_and_the_forced_are_read_and_not_decided() -> None:
    switcher = long_switcher()
    method = SwitchGeneration(
        three(sampling=SamplingParams()),
        LMSwitcher(switcher),
        max_new_tokens=22,
        boundary=EveryTokens(SEGMENT),
        first="c",
        final_prompt=" so",
    )
    done = method.generate(QUERIES)
    assert all(completion.segments[0].probabilities == {} for completion in done)
    assert all(FORCED in [s.candidate for s in completion.segments] for completion in done)
    made = check_probabilities(switcher, done)
    assert made == sum(completion.usage["switcher"].decisions for completion in done)
    assert made == sum(len(completion.segments) - 2 for completion in done)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_divides_the_labels_logits(temperature: float) -> None:
    switcher = long_switcher()
    policy = LMSwitcher(switcher, temperature=temperature)
    method = SwitchGeneration(three(sampling=GREEDY), policy, max_new_tokens=1)
    question = QUESTION.format(kind="number", first=0, last=2)
    for query, done in zip(QUERIES, method.generate(QUERIES), strict=True):
        prompt = switcher.vocabulary.encode(query)
        want = brute_force(switcher, prompt, question, ["0", "1", "2"], temperature)
        assert list(done.segments[0].probabilities.values()) == pytest.approx(want, abs=1e-4)


def test_argmax_takes_the_best_and_top_p_draws() -> None:
    switcher = long_switcher()
    queries = ["the quick brown fox"] * 40
    for top_p in (None, 0.6, 1.0):
        policy = LMSwitcher(switcher, top_p=top_p)
        method = SwitchGeneration(
            three(sampling=SamplingParams()), policy, max_new_tokens=3, boundary=EveryTokens(1)
        )
        done = method.generate(queries)
        chosen = [(s.candidate, s.probabilities) for c in done for s in c.segments]
        if top_p is None:
            assert all(p[name] == max(p.values()) for name, p in chosen)
        else:
            for name, p in chosen:
                above = sum(q for q in p.values() if q > p[name])
                assert above < top_p
            firsts = {c.segments[0].candidate for c in done}
            shares = list(done[0].segments[0].probabilities.values())
            kept = {"abc"[select(np.array(shares), u, top_p)] for u in np.linspace(0, 0.999, 500)}
            assert firsts == kept


@pytest.mark.parametrize(
    "labels",
    [("the fox", "the dog", "four"), ("river", "rim", "old road"), ("xy", "yx", "zz z")],
    ids=lambda labels: labels[0],
)
def test_labels_of_several_tokens_go_by_the_chain_rule(labels: tuple[str, ...]) -> None:
    switcher = long_switcher()
    prompt = SwitcherPrompt(labels=labels, question=" who is next? model ")
    policy = LMSwitcher(switcher, prompt=prompt)
    method = SwitchGeneration(
        three(sampling=GREEDY), policy, max_new_tokens=6, boundary=EveryTokens(3)
    )
    done = method.generate(QUERIES)
    assert max(map(len, method.engine.policy.text.choices)) > 1
    encode = switcher.vocabulary.encode
    for query, completion in zip(QUERIES, done, strict=True):
        first, second = completion.segments
        ids = encode(query)
        want = brute_force(switcher, ids, " who is next? model ", list(labels))
        assert list(first.probabilities.values()) == pytest.approx(want, abs=1e-4)
        label = labels["abc".index(first.candidate)]
        ids += encode(f" <model {label} begins> ") + list(first.token_ids)
        ids += encode(f" <model {label} ends>")
        want = brute_force(switcher, ids, " who is next? model ", list(labels))
        assert list(second.probabilities.values()) == pytest.approx(want, abs=1e-4)


def test_labels_that_start_one_another_are_refused() -> None:
    prompt = SwitcherPrompt(labels=("1", "2", "12"))
    with pytest.raises(InputError, match=r"'1' starts the label '12'"):
        SwitchGeneration(three(), LMSwitcher(long_switcher(), prompt=prompt))


@pytest.mark.parametrize("labels", [("x", "y"), ("x", "y", "x"), ("a", "b", "c", "d")], ids=str)
def test_one_label_a_candidate(labels: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"different switcher labels for 3 candidates"):
        SwitchGeneration(three(), LMSwitcher(long_switcher(), prompt=SwitcherPrompt(labels=labels)))


@pytest.mark.parametrize(
    ("count", "first", "last", "kind"),
    [
        (1, "0", "0", "number"),
        (10, "0", "9", "number"),
        (11, "A", "K", "letter"),
        (26, "A", "Z", "letter"),
    ],
)
def test_more_than_ten_candidates_are_asked_for_by_letter(
    count: int, first: str, last: str, kind: str
) -> None:
    prompt = SwitcherPrompt()
    labels = prompt.labels_for(count)
    assert (labels[0], labels[-1], len(set(labels))) == (first, last, count)
    assert f"a {kind} from {first} to {last}." in prompt.question_for(labels)


def test_eleven_candidates_are_told_apart() -> None:
    names = "abcdefghijk"
    pool = CandidatePool(
        {n: backend(n, loaded("llama", i % 3)) for i, n in enumerate(names)}, GREEDY
    )
    switcher = long_switcher()
    method = SwitchGeneration(pool, LMSwitcher(switcher), max_new_tokens=2)
    (done,) = method.generate(["fox"])
    question = QUESTION.format(kind="letter", first="A", last="K")
    want = brute_force(switcher, switcher.vocabulary.encode("fox"), question, list("ABCDEFGHIJK"))
    assert [done.segments[0].probabilities[n] for n in names] == pytest.approx(want, abs=1e-4)


def test_twenty_seven_candidates_need_labels() -> None:
    with pytest.raises(InputError, match="27 candidates"):
        SwitcherPrompt().labels_for(27)


def test_a_switcher_with_another_vocabulary_reads_the_text() -> None:
    switcher = long_switcher(tokens=tokenizer("bytes", "sea"))
    text = " over the sea, a fox 🦊 came by the shore"
    pool = CandidatePool({n: Scripted(n, says(text, "the fox")) for n in "abc"}, GREEDY)
    method = SwitchGeneration(
        pool, LMSwitcher(switcher), max_new_tokens=99, boundary=EveryTokens(9)
    )
    (done,) = method.generate(["the fox"])
    assert done.text == text
    encode = switcher.vocabulary.encode
    question = QUESTION.format(kind="number", first=0, last=2)
    ids = encode("the fox")
    for segment in done.segments:
        want = brute_force(switcher, ids, question, ["0", "1", "2"])
        assert list(segment.probabilities.values()) == pytest.approx(want, abs=1e-4)
        label = "abc".index(segment.candidate)
        ids = ids + encode(f" <model {label} begins> ") + encode(segment.text)
        ids += encode(f" <model {label} ends>")
    assert len(done.segments) >= 5


def test_the_chat_frame_puts_all_into_the_users_turn() -> None:
    switcher = long_switcher(tokens=tokenizer(chat=True))
    policy = LMSwitcher(switcher, prompt=SwitcherPrompt(frame="chat"))
    method = SwitchGeneration(
        three(sampling=GREEDY), policy, max_new_tokens=8, boundary=EveryTokens(4)
    )
    encode = switcher.vocabulary.encode
    question = QUESTION.format(kind="number", first=0, last=2) + "<|end|><|assistant|>"
    for query, done in zip(QUERIES, method.generate(QUERIES), strict=True):
        ids = encode("<|user|>" + query)
        for segment in done.segments:
            want = brute_force(switcher, ids, question, ["0", "1", "2"])
            assert list(segment.probabilities.values()) == pytest.approx(want, abs=1e-4)
            label = "abc".index(segment.candidate)
            ids += encode(f" <model {label} begins> ") + list(segment.token_ids)
            ids += encode(f" <model {label} ends>")


def test_a_full_switcher_ends_the_response() -> None:
    short = LoadedModel(build("llama", seed=9, max_position_embeddings=200), "short")
    method = SwitchGeneration(
        three(sampling=GREEDY),
        LMSwitcher(backend("short", short)),
        max_new_tokens=60,
        boundary=EveryTokens(4),
    )
    (done,) = method.generate(["fox"])
    assert done.finish_reason == "context"
    assert 2 <= len(done.segments) < 15
    with pytest.raises(InputError, match=r"prompt 2 .*switcher 'short' reads at most 200"):
        method.generate(["fox", "fox " * 60])


def test_a_switcher_reads_every_row_apart() -> None:
    """Rows join and leave; each sees its own trace only."""
    switcher = long_switcher()
    lengths = random_ids([12], seed=3)[0]
    pool = CandidatePool(
        {n: Scripted(n, letters(n), vocabulary=switcher.vocabulary) for n in "abc"}, GREEDY
    )
    method = SwitchGeneration(
        pool, LMSwitcher(switcher), max_new_tokens=12, boundary=EveryTokens(3), batch_rows=2
    )
    queries = ["fox " * (1 + length % 5) for length in lengths]
    together = method.generate(queries, seeds=lengths)
    for query, seed, done in zip(queries, lengths, together, strict=True):
        (alone,) = method.generate([query], seeds=[seed])
        for one, two in zip(alone.segments, done.segments, strict=True):
            assert one.candidate == two.candidate
            assert one.probabilities == pytest.approx(dict(two.probabilities), abs=1e-4)


@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"top_p": 1.5}, {"temperature": 0.0}], ids=str)
def test_impossible_switcher_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="switcher's"):
        LMSwitcher(backend("switcher"), **options)
