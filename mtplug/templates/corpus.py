"""A corpus: one file with `source ||| target` on each line."""

from dataclasses import dataclass

import mtplug
from mtplug.data.corpora import Corpus, CorpusConfig, existing_file
from mtplug.errors import UserError

MTPLUG_API = {"corpora": 1}


@dataclass
class BarsConfig(CorpusConfig):
    """One file of source and target separated by three bars."""

    path: str = ""
    """the file"""
    root: str = ""
    """folder that it starts from; empty: data.root"""


class Bars(Corpus):
    def files(self):
        return [existing_file(self.config.path, self.config.root, "corpus NAME")]

    def __iter__(self):
        (path,) = self.files()
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                source, bars, target = line.partition("|||")
                if not bars:
                    raise UserError(f"{path}:{number}: no ||| between source and target")
                yield source.strip(), target.strip()


@mtplug.hookimpl
def register_corpora(register):
    register("NAME", Bars, BarsConfig)
