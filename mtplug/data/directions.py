"""Directions of a model that is told both languages, by symbols that its vocabulary has already, as NLLB-200 has them.

A tag such as `<2deu_Latn:eng_Latn>` in front of a source text says what to write, and behind the colon what the text is in; the
tokenizer makes of it what the model wants (`Tokenizer.directed`). What a user leaves out of it is filled in here.
"""

from __future__ import annotations

from collections.abc import Iterable

from mtplug.data.tags import TAG, UnknownTag, tag
from mtplug.data.tokenizers import Tokenizer
from mtplug.errors import UserError


class Directions:
    """Gives texts their tags.

    Args:
        tokenizer: whose `languages` there are.
        learnt: (source, target) of what the run trains on, in the names of its corpora; none of a run that trains on nothing.
        usual: (source, target) of the task.

    Raises:
        UserError: the model does not have a language that is learnt.
    """

    def __init__(
        self, tokenizer: Tokenizer, learnt: Iterable[tuple[str, str]], usual: tuple[str, str]
    ):
        self.tokenizer, self.usual = tokenizer, usual
        self.learnt: dict[str, list[str]] = {}
        for source, target in learnt:
            to = self._code(target, "data.train: target language ")
            sources = self.learnt.setdefault(to, [])
            if (code := self._code(source, "data.train: source language ")) not in sources:
                sources.append(code)

    def address(self, text: str, target: str = "", source: str = "") -> str:
        """A text with the tag of both languages in front; languages that it begins with go before those that are given.

        Raises:
            UnknownTag: it begins with the tag of a language that there is not.
            UserError: so is one that is given, or nothing says a language.
        """
        if not text.strip():
            return text
        found = TAG.match(text)
        if found and _is_name(found.group(2)):
            target, _, own = found.group(2).partition(":")
            source = own or source
            try:
                self._codes(target, own or target)
            except UserError as error:
                raise UnknownTag(f"the run has no language tag {found.group(1)}: {error}") from None
            text = text[found.end() :]
        return f"{tag(*self.codes(target, source))} {text}"

    def addressed(self, text: str, target: str, source: str) -> str:
        """`address` for the text of a corpus, of which nothing is refused: what begins with no known tag is text."""
        try:
            return self.address(text, target, source)
        except UnknownTag:
            return f"{tag(*self.codes(target, source))} {text}"

    def codes(self, target: str, source: str) -> tuple[str, str]:
        """Of target and source; what is empty is the only target that is learnt, and the only source for it, or else what the
        task says.

        Raises:
            UserError: there is no such language, or nothing says it.
        """
        target = self._code(target, "target language ") if target else self._usual_target()
        if source:
            return target, self._code(source, "source language ")
        learnt = self.learnt.get(target, [])
        if len(learnt) == 1:
            return target, learnt[0]
        usual = self._known(self.usual[0])
        if usual and usual != target and (usual in learnt or not learnt):
            return target, usual
        known = f": one of {', '.join(learnt)}" if learnt else ""
        raise UserError(
            f"nothing says the source's language{known}; give --source-lang, or lines that begin with a tag such as "
            f"{tag(target, (learnt or ['SOURCE'])[0])}"
        )

    def _usual_target(self) -> str:
        if len(self.learnt) == 1:
            return next(iter(self.learnt))
        usual = self._known(self.usual[1])
        if not usual or (self.learnt and usual not in self.learnt):
            known = list(self.learnt) or self.tokenizer.languages[:20]
            what = (
                f"target language {self.usual[1]} is not among"
                if self.usual[1]
                else "choose one of"
            )
            raise UserError(
                f"{what} {', '.join(known)}, which this run writes: give --target-lang, or lines that begin with a "
                f"tag such as {tag(known[0])}"
            )
        return usual

    def _known(self, name: str) -> str:
        """The code of a language, or nothing."""
        try:
            return self.tokenizer.language(name)
        except UserError:
            return ""

    def _codes(self, *names: str) -> list[str]:
        return [self.tokenizer.language(name) for name in names]

    def _code(self, name: str, what: str) -> str:
        try:
            return self.tokenizer.language(name)
        except UserError as error:
            raise UserError(f"{what}{error}") from None


def _is_name(text: str) -> bool:
    """Whether a tag is of a language: `<25>` is none."""
    return text[0].isalpha() or text[0] == "_"
