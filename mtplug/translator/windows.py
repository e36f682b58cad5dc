"""Texts that are translated with their neighbours, and cut into one translation for each again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtplug.data.separated import SEPARATOR, Separated, together, windows
from mtplug.search.wishes import Wishes
from mtplug.translator.attention import source_words, target_words, word_alignment
from mtplug.translator.inputs import NoPosition, TooLong
from mtplug.translator.result import Translation

if TYPE_CHECKING:
    from mtplug.translator.translator import Translator


def in_windows(
    translator: Translator,
    written: list[str],
    given: list[Wishes | None],
    documents: Sequence[int],
    progress: Callable[[int], None],
    attention: bool,
    token_scores: bool,
    search_settings: dict[str, Any],
) -> list[list[Translation]]:
    """`Translator.alone` of texts with their neighbours. A window of which another number of sentences came back is
    translated once more, in halves; texts with wishes stand by themselves.

    Args:
        documents: for each text the number of its document; a window has texts of one.
        attention, token_scores, search_settings: see `Translator.alone`.
    """
    texts = [translator.address(text) for text in written]
    lengths = [(len(ids),) for ids in translator.encoded(texts)]
    bare = [translator.task.bare(text) for text in texts]
    tags = [text[: len(text) - len(own)] for text, own in zip(texts, bare, strict=True)]
    of = [
        None if wish or not text or SEPARATOR in text else (document, tag)
        for text, tag, wish, document in zip(bare, tags, given, documents, strict=True)
    ]
    results: list[list[Translation]] = [[] for _ in texts]

    def search(groups: list[list[int]]) -> list[list[list[Translation]]]:
        asked = [tags[g[0]] + together([bare[n] for n in g]) for g in groups]
        wishes = [given[g[0]] for g in groups]  # those that have any stand by themselves
        done = sum(map(bool, results))
        left = len(texts) - done
        try:
            rows = translator.alone(
                asked,
                wishes,
                lambda n: progress(done + n * left // len(groups)),
                attention,
                token_scores,
                search_settings,
            )
        except NoPosition as error:
            raise NoPosition({groups[n][0]: why for n, why in error.why.items()}) from None
        except TooLong as error:
            raise error.of(groups[error.number][0]) from None
        return [
            _cut(translator, row, text, len(g))
            for row, text, g in zip(rows, asked, groups, strict=True)
        ]

    groups = windows(lengths, of, translator.window, translator.max_length)
    torn: set[int] = set()
    while groups:
        halves = []
        found = search(groups)
        policy = translator.policy(search_settings)
        for group, rows in zip(groups, found, strict=True):
            for n, row in zip(group, rows, strict=False):
                results[n] = row
                for translation in row if len(group) == 1 and n in torn else ():
                    translation.notes.append("translated without its neighbours")
                if len(group) > 1:  # of the sentence, and not of all of its window
                    text = translator.task.source_tokenizer.plain(texts[n])
                    wish = policy.wishes(text, None)
                    for translation in row:
                        translation.unmet = wish.unmet(translation.text)
            if not rows:
                middle = len(group) // 2
                halves += [group[:middle], group[middle:]]
                torn.update(group)
        groups = halves
    return results


def _cut(
    translator: Translator, row: list[Translation], source: str, count: int
) -> list[list[Translation]]:
    """The translations of a window as those of each of its sentences, of which there are `count`; empty if the best has
    another number of them."""
    if count == 1:
        return [row]
    tokenizers = translator.task.source_tokenizer, translator.task.target_tokenizer
    assert isinstance(tokenizers[0], Separated) and isinstance(tokenizers[1], Separated)
    sources = tokenizers[0].parts(translator.encoded([source])[0])
    sentences = source.split(SEPARATOR)
    found: list[list[Translation]] = [[] for _ in range(count)]
    for rank, whole in enumerate(row):
        parts = tokenizers[1].parts([i for ids in whole.parts for i in ids])
        texts = [translator.clean(text) for text in tokenizers[1].decode(parts)]
        if len(parts) != count or not all(texts):
            if not rank:
                return []
            continue
        s = t = 0
        for k, (text, ids, given) in enumerate(zip(texts, parts, sources, strict=True)):
            own = replace(
                whole,
                text=text,
                tokens=whole.tokens[t : t + len(ids)],
                token_scores=whole.token_scores[t : t + len(ids) + 1],  # with what ends it
                finished=whole.finished or k + 1 < count,
                notes=list(whole.notes),
                parts=[ids],
            )
            if whole.attention is not None and whole.source_tokens is not None:
                own.source_tokens = whole.source_tokens[s : s + len(given)]
                own.attention = whole.attention[t : t + len(ids), s : s + len(given)]
                read = source_words(translator.task, sentences[k], [given])
                written = target_words(tokenizers[1], [ids], True, False)
                own.word_alignment = word_alignment(own, read, written)
            found[k].append(own)
            s, t = s + len(given) + 1, t + len(ids) + 1
    return found
