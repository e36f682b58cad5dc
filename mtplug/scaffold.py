"""`mtplug-plugins new`: a complete, installable, tested plugin package."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import mtplug
from mtplug.errors import UserError, did_you_mean
from mtplug.registry import plural

# For each kind: the module's body, and the YAML that makes a run use it. NAME is the plugin's name.
TEMPLATES: dict[str, tuple[str, str]] = {
    "architecture": (
        '''"""An architecture: a Transformer whose encoder output passes a learnt gate."""

from dataclasses import dataclass

import torch
from torch import nn

from mtplug.architectures import Transformer, TransformerConfig


@dataclass
class Config(TransformerConfig):
    """Transformer with a gate behind the encoder."""

    gate_bias: float = 1.0
    """what the gate starts from"""


class Component(Transformer):
    def __init__(self, config: Config, task):
        super().__init__(config, task)
        self.gate = nn.Linear(config.dim, config.dim)
        nn.init.constant_(self.gate.bias, config.gate_bias)

    def encode(self, source_tokens, source_lengths):
        memory, lengths = super().encode(source_tokens, source_lengths)
        return memory * torch.sigmoid(self.gate(memory)), lengths
''',
        "architecture.name=NAME",
    ),
    "criterion": (
        '''"""A criterion: label-smoothed cross-entropy, scaled."""

from dataclasses import dataclass

from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig


@dataclass
class Config(LabelSmoothedCrossEntropyConfig):
    """Cross-entropy with label smoothing, times a factor."""

    scale: float = 1.0
    """what the loss is multiplied by"""


class Component(LabelSmoothedCrossEntropy):
    def __init__(self, config: Config, task):
        super().__init__(config, task)
        self.scale = config.scale

    def __call__(self, model, batch):
        loss = super().__call__(model, batch)
        loss.sum = loss.sum * self.scale
        return loss
''',
        "criterion.name=NAME",
    ),
    "task": (
        '''"""A task: translation into lower-cased text."""

from dataclasses import dataclass

from mtplug.tasks import Translation, TranslationConfig


@dataclass
class Config(TranslationConfig):
    """Translation into lower-cased text."""


class Component(Translation):
    def transform(self, source, target):
        return source, target.lower()
''',
        "task.name=NAME",
    ),
    "lr_scheduler": (
        '''"""A learning-rate schedule: up to the peak and down to zero, both linearly."""

from dataclasses import dataclass


@dataclass
class Config:
    """Linear warm-up, then linear decay to zero at the last update."""

    warmup_updates: int = 4
    """update with the highest rate"""


class Component:
    def __init__(self, config: Config, max_updates: int):
        self.warmup, self.end = config.warmup_updates, max_updates

    def __call__(self, update: int) -> float:
        if update <= self.warmup:
            return update / self.warmup
        return max(0.0, (self.end - update) / max(self.end - self.warmup, 1))
''',
        "lr_scheduler.name=NAME",
    ),
    "optimizer": (
        '''"""An optimizer: plain gradient descent with momentum."""

from dataclasses import dataclass

import torch


@dataclass
class Config:
    """Stochastic gradient descent."""

    lr: float = 0.1
    """peak learning rate"""
    momentum: float = 0.9


def Component(config: Config, parameters):
    return torch.optim.SGD(list(parameters), lr=config.lr, momentum=config.momentum)
''',
        "optimizer.name=NAME",
    ),
    "metric": (
        '''"""A metric: share of translations that equal a reference."""

from dataclasses import dataclass

from mtplug.evaluation import Metric, Score


@dataclass
class Config:
    """Exact matches, in percent."""

    label: str = "NAME"
    """its name in logs"""


class Component(Metric):
    def __init__(self, config: Config, target_lang: str):
        self.label = config.label

    def score(self, hypotheses, references):
        rows = zip(hypotheses, *references, strict=True)
        value = 100 * sum(row[0] in row[1:] for row in rows) / max(len(hypotheses), 1)
        return Score(self.label, value, "exact", f"exact matches = {value:.2f} %")
''',
        "validation.metrics=[{name: NAME}] validation.best_metric=NAME",
    ),
    "search_strategy": (
        '''"""A search strategy: beam search that prefers long translations."""

from dataclasses import dataclass

from mtplug.search import BeamConfig, BeamSearch


@dataclass
class Config(BeamConfig):
    """Beam search with a strong length penalty."""

    length_penalty: float = 2.0


class Component(BeamSearch):
    pass
''',
        "validation.search.name=NAME",
    ),
    "corpus": (
        '''"""A corpus: pairs listed in the configuration, as `source = target`."""

from dataclasses import dataclass, field
from pathlib import Path

from mtplug.data.corpora import Corpus, CorpusConfig


@dataclass
class Config(CorpusConfig):
    """Pairs given in the configuration itself."""

    pairs: list[str] = field(default_factory=lambda: ["ein Haus = a house"] * 20)
    """source and target with ` = ` between them"""


class Component(Corpus):
    def files(self) -> list[Path]:
        return [Path(__file__)]

    def __iter__(self):
        for pair in self.config.pairs:
            source, _, target = pair.partition(" = ")
            yield source, target
''',
        "data.train={name: NAME}",
    ),
    "tracker": (
        '''"""A tracker: writes the kinds of events to events.txt in the run's folder."""

from dataclasses import dataclass

from mtplug.training import Tracker


@dataclass
class Config:
    """events.txt, one kind of event a line."""


class Component(Tracker):
    def event(self, kind, values):
        with open(self.run_dir / "events.txt", "a") as file:
            file.write(kind + "\\n")
''',
        "logging.trackers=[{name: jsonl}, {name: NAME}]",
    ),
    "peft_method": (
        '''"""A PEFT method: only biases are trained (Ben Zaken et al. 2022)."""

from dataclasses import dataclass


@dataclass
class Config:
    """BitFit: train parameters whose name ends in one of these."""

    endings: tuple[str, ...] = ("bias",)


class Component:
    def __init__(self, config: Config):
        self.config = config

    def apply(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(tuple(self.config.endings)))
        return model
''',
        "peft.name=NAME",
    ),
    "position_encoding": (
        '''"""A position encoding: one learnt direction, scaled by the position."""

from dataclasses import dataclass

import torch
from torch import nn

from mtplug.nn.positions import PositionEncoding


@dataclass
class Config:
    """A ramp along a learnt direction."""

    scale: float = 0.01


class Component(PositionEncoding):
    def __init__(self, config: Config, stack):
        super().__init__()
        self.scale = config.scale
        self.direction = nn.Parameter(torch.randn(stack.dim))

    def embed(self, start: int, length: int):
        steps = torch.arange(start, start + length, device=self.direction.device)
        return self.scale * steps[:, None] * self.direction
''',
        "architecture.position.name=NAME",
    ),
}

PYPROJECT = """\
[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[project]
name = "mtplug-NAME"
version = "0.1.0"
description = "A plugin for mtplug"
requires-python = ">=3.10"
dependencies = ["mtplug>=VERSION"]

[project.optional-dependencies]
dev = ["pytest"]

[project.entry-points.mtplug]
NAME = "PACKAGE.plugin"

[tool.setuptools]
packages = ["PACKAGE"]
"""

TEST = '''\
"""The plugin loads, and a tiny run trains with everything that it adds."""

import subprocess
import sys
from pathlib import Path

import pytest

from mtplug.plugins import PluginHost

COMPONENTS = COMPONENT_LIST


@pytest.mark.parametrize(("kind", "setting"), COMPONENTS)
def test_component_is_found_under_its_name(kind, setting):
    assert PluginHost().component(kind, "NAME").name == "NAME"


@pytest.mark.parametrize(("kind", "setting"), COMPONENTS)
def test_a_tiny_run_trains_with_it(kind, setting, tmp_path: Path):
    lines = ["der Hund rennt", "die Katze rennt", "ein Haus", "der Hund", "eine Katze"] * 10
    for side in ("de", "en"):
        (tmp_path / f"text.{side}").write_text("\\n".join(lines) + "\\n")
    (tmp_path / "run.yaml").write_text(
        f"""
run_dir: {tmp_path}/run
task: {{source_lang: de, target_lang: en}}
data:
  root: {tmp_path}
  train: {{source: text.de, target: text.en}}
  valid: {{source: text.de, target: text.en}}
  workers: 1
tokenizer: {{model_type: char, vocab_size: 24}}
architecture: {{dim: 16, ffn_dim: 16, heads: 2, encoder_layers: 1, decoder_layers: 1}}
training: {{max_updates: 4}}
validation: {{every_updates: 2, max_sentences: 2}}
"""
    )
    options = [part.strip() for part in setting.split("&")]
    command = [sys.executable, "-m", "mtplug.cli.train", str(tmp_path / "run.yaml"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").is_file()
'''

README = """\
# mtplug-NAME

A plugin for mtplug that adds: KINDS.

    pip install -e ".[dev]"
    pytest
    mtplug-plugins list
    mtplug-train config.yaml SETTINGS
"""


def write_package(name: str, kinds: list[str], where: Path) -> Path:
    """Write the package `mtplug-NAME` below `where`.

    Args:
        name: letters, digits and `_`.
        kinds: keys of `TEMPLATES`.

    Returns:
        The package's folder.

    Raises:
        UserError: a kind has no template, the name is none, or the folder is there already.
    """
    short = name.removeprefix("mtplug-").replace("-", "_")
    if not re.fullmatch(r"[a-z]\w*", short) or keyword.iskeyword(short):
        raise UserError(f"'{name}' is no name for a package; use lower-case letters, digits, '_'")
    for kind in kinds:
        if kind not in TEMPLATES:
            raise UserError(f"--with {kind}: no template{did_you_mean(kind, TEMPLATES)}")
    package = f"mtplug_{short}"
    folder = where / f"mtplug-{short.replace('_', '-')}"
    if folder.exists():
        raise UserError(f"{folder} is there already; choose another name or --folder")

    def fill(text: str) -> str:
        return (
            text.replace("VERSION", mtplug.__version__)
            .replace("PACKAGE", package)
            .replace("NAME", short)
        )

    imports, hooks, components = [], [], []
    for kind in kinds:
        body, setting = TEMPLATES[kind]
        _write(folder / package / f"{kind}.py", fill(body))
        imports.append(f"from {package} import {kind}")
        hooks.append(
            f"@mtplug.hookimpl\ndef register_{plural(kind)}(register):\n"
            f'    register("{short}", {kind}.Component, {kind}.Config)\n'
        )
        parts = re.split(r" (?=[a-z_.]+=)", fill(setting))
        components.append((plural(kind), " & ".join(parts)))
    versions = "{" + ", ".join(f'"{plural(kind)}": 1' for kind in kinds) + "}"
    plugin = (
        f'"""What mtplug-{short} registers."""\n\nimport mtplug\n'
        + "\n".join(sorted(imports))
        + "\n\n"
        f"MTPLUG_API = {versions}\n\n\n" + "\n\n".join(hooks)
    )
    _write(folder / package / "__init__.py", f'"""mtplug-{short}."""\n')
    _write(folder / package / "plugin.py", plugin)
    _write(folder / "pyproject.toml", fill(PYPROJECT))
    listed = "[\n" + "".join(f'    ("{k}", "{s}"),\n' for k, s in components) + "]"
    test = fill(TEST).replace("COMPONENT_LIST", listed)
    _write(folder / "tests" / f"test_{short}.py", test)
    settings = " ".join(f"'{s}'" if "{" in s else s for _, s in components).replace(" & ", " ")
    readme = fill(README).replace("KINDS", ", ".join(kinds)).replace("SETTINGS", settings)
    _write(folder / "README.md", readme)
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
