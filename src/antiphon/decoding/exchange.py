"""Which candidates pass on token ids and which pass on text, and which ids none may write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from antiphon.backends.base import Backend
from antiphon.backends.vocabulary import differences, losses
from antiphon.decoding.rows import Candidate
from antiphon.errors import InputError

Exchange = Literal["auto", "ids", "text"]


def group_by_vocabulary(candidates: Sequence[Candidate], exchange: Exchange) -> list[Backend]:
    """Number the vocabularies (``Candidate.group``); forbid what cannot cross over.

    Returns:
        One backend for every vocabulary group.

    Raises:
        InputError: ids were asked for and vocabularies differ, or a tokenizer loses text.
    """
    readers: list[Backend] = []
    reason = ""
    for candidate in candidates:
        vocabulary = candidate.backend.info.vocabulary
        for number, reader in enumerate(readers):
            reason = differences(reader.info.vocabulary, vocabulary)
            if not reason and exchange != "text":
                candidate.group = number
                break
        else:
            if readers and exchange == "ids":
                raise InputError(
                    f"candidates {candidates[0].name!r} and {candidate.name!r} cannot "
                    f"exchange token ids: {reason}",
                    remedy="use --exchange text (or auto), or a pool of one vocabulary",
                )
            candidate.group = len(readers)
            readers.append(candidate.backend)
    for reader in readers if len(readers) > 1 else []:
        lost = losses(reader.info.vocabulary)
        if lost:
            raise InputError(
                f"candidate {reader.info.name!r} has to read text of other vocabularies, and "
                f"its tokenizer loses {', '.join(lost)}",
                remedy="leave it out, or use a pool of one vocabulary",
            )
    for group in range(len(readers)):
        forbid_foreign([c for c in candidates if c.group == group])
    return readers


def forbid_foreign(group: Sequence[Candidate]) -> None:
    """Keep candidates of one vocabulary from writing ids that another of them cannot read.

    Checkpoints of one pipeline often differ in an added token or two. A candidate's own
    end-of-sequence tokens stay allowed: they end its turn and are never passed on.
    """
    vocabularies = [candidate.backend.info.vocabulary for candidate in group]
    entries = [set(vocabulary.tokens.items()) for vocabulary in vocabularies]
    common = set.intersection(*entries)
    odd = {index for items in entries for _, index in items - common}
    sizes = [candidate.backend.info.embedding_size for candidate in group]
    known = [size for size in sizes if size is not None]
    if known:
        odd |= set(range(min(known), max(known)))
    for candidate in group:
        candidate.forbidden = tuple(sorted(odd - candidate.backend.info.eos_ids))
