"""What a translator is given: checks of it, and their errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mtplug.architectures.base import Model
from mtplug.data.corpora import whole_characters
from mtplug.errors import UserError
from mtplug.nn.positions import positions_of
from mtplug.search.wishes import Wishes


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list, lone surrogates replaced; a single string would be taken for a list of its letters.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(texts, str):
        raise TypeError(f"expected a list of texts, got one text; give [{texts[:30]!r}]")
    made = list(texts)
    for number, text in enumerate(made):
        if not isinstance(text, str):
            raise TypeError(f"texts[{number}]: expected a text, got {text!r}")
    return [whole_characters(text) for text in made]


def check_as_many(sources: Sequence[str], targets: Sequence[str]) -> None:
    """Raises `UserError` for sources and translations of them that are not as many."""
    if len(sources) != len(targets):
        raise UserError(f"{len(sources):,} sources and {len(targets):,} translations of them")


def checked_wishes(
    texts: Sequence[str], wishes: Sequence[Wishes | None] | None
) -> list[Wishes | None]:
    """Those of each text, or None.

    Raises:
        UserError: there are fewer or more of them than texts.
        TypeError: one is something else.
    """
    given: list[Wishes | None] = [None] * len(texts) if wishes is None else list(wishes)
    for one in given:
        if not (one is None or isinstance(one, Wishes)):
            raise TypeError(f"expected Wishes or None, got {one!r}")
    if len(given) != len(texts):
        raise UserError(f"wishes: {len(given)} for {len(texts)} texts")
    return given


class TooLong(UserError):
    """A text has more tokens than `data.max_length`, and `data.on_long` is error.

    Attributes:
        number: of the text, counted from 0.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number

    def of(self, number: int) -> TooLong:
        """The same of the text that has another number elsewhere."""
        told = str(self).replace(f"sentence {self.number + 1}", f"sentence {number + 1}", 1)
        return TooLong(told, number)


class NoPosition(TooLong):
    """Texts that are not to be cut, such as those to be scored, have more tokens than the model has positions.

    Attributes:
        why: by number of the text what is too long; `number` is the first.
    """

    def __init__(self, why: dict[int, str]):
        self.why = why
        number = min(why)
        super().__init__(f"sentence {number + 1}: {why[number]}", number)


class Unreadable(NoPosition):
    """Texts that the tokenizer does not take; told of in the same way."""


def check_positions(sides: list[tuple[str, list[int]]], model: Model) -> None:
    """Raises `NoPosition` for texts that are too long; `sides` are of (name, tokens of each)."""
    most = positions_of(model) - 1  # `</s>` has one, too
    why: dict[int, str] = {}
    for number, lengths in enumerate(zip(*(counts for _, counts in sides), strict=True)):
        for (name, _), length in zip(sides, lengths, strict=True):
            if length > most:
                why[number] = (
                    f"its {name} has {length} tokens, and the model has positions for {most:.0f}; shorten it"
                )
    if why:
        raise NoPosition(why)
