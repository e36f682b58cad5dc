"""Language modelling: the probability of text, line by line, given nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mtplug
from mtplug.config.schema import RunConfig
from mtplug.data.corpora import Corpus
from mtplug.data.tags import TAGS, Tagged
from mtplug.files import is_run, read_json
from mtplug.registry import run_field
from mtplug.tasks.adoption import adopt_tokenizer
from mtplug.tasks.base import Report
from mtplug.tasks.translation import AGAIN, Translation, with_corpora


@dataclass
class LanguageModelingConfig:
    """Text of one language; of a parallel corpus, the target side."""

    target_lang: str = ""
    """code of the language"""
    tokenizer_from: str = run_field("tokenizer")
    """folder of a run whose tokenizer is taken over instead of training one, as a model must have
    that shall be fused with this one in a search (`search.language_model`)"""


class LanguageModeling(Translation):
    """Pairs with an empty source: any architecture learns, and search fuses it as a language model.

    What a `Translator` is given is the beginning of a line, which it continues.
    """

    translates = False
    continues = True
    sourceless = True
    config: Any

    def __init__(self, config: LanguageModelingConfig):
        self.config = config
        self.target_lang = config.target_lang
        self.languages = (config.target_lang, config.target_lang)

    def transform(self, source: str, target: str) -> tuple[str, str]:
        return "", target

    def corpora(self, run: RunConfig, split: str) -> list[Corpus]:
        """As of translation; of a reader of two files one is enough."""
        chosen = [
            replace(c, config=_one_file(c.config)) if hasattr(c.config, "target") else c
            for c in getattr(run.data, split)
        ]
        return super().corpora(with_corpora(run, split, chosen), split)

    def _makes_tokenizer(self, run: RunConfig) -> bool:
        return not self.config.tokenizer_from and super()._makes_tokenizer(run)

    def _tokenizers(
        self,
        run: RunConfig,
        folder: Path,
        corpora: list[Corpus],
        sums: list[list[str]],
        report: Report,
    ) -> None:
        given = self.config.tokenizer_from
        if not given or run.training.finetune_from:  # a base has one, whatever it took over
            return super()._tokenizers(run, folder, corpora, sums, report)
        tags = self._tags_of(Path(given)) if is_run(given) else ()
        adopt_tokenizer(run, Path(given), folder, "task.tokenizer_from", tags)
        return self.load(run, folder.parent)

    def load(self, run: RunConfig, run_dir: Path) -> None:
        super().load(run, run_dir)
        tags = run_dir / "tokenizer" / TAGS  # of the run whose tokenizer was taken over
        if tags.is_file() and run.tokenizer.build().joint:  # else its source side alone has them
            self.target_tokenizer = Tagged(self.target_tokenizer, read_json(tags, AGAIN, list))
            self.source_tokenizer = self.target_tokenizer

    def _sides(self, joint: bool) -> list[tuple[str, tuple[int, ...]]]:
        return [("joint" if joint else "target", (1,))]


def _one_file(config: Any) -> Any:
    one = config.target or config.source
    return replace(config, source=one, target=one)


@mtplug.hookimpl
def register_tasks(register):
    register("language_modeling", LanguageModeling, LanguageModelingConfig)
