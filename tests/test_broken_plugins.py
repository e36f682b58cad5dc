"""What the author of a plugin is told who makes a common mistake: which component, what it gave, what it has to give."""

import re

import pytest

from mtplug.config.build import component_from_overrides
from mtplug.errors import UserError
from mtplug.plugins import PluginHost
from tests import tiny

HEAD = """
from dataclasses import dataclass, field
import torch
from torch import nn
import mtplug
from mtplug.criteria import Loss
from mtplug.data.corpora import Corpus
from mtplug.data.tokenizers import Tokenizer
from mtplug.nn.attention import AttentionBackend
from mtplug.nn.positions import PositionEncoding
from mtplug.search import Hypothesis, SearchStrategy
from mtplug_kernels import positions
"""

CRITERION = """
class Broken:
    def __init__(self, config, task): pass
    def __call__(self, model, batch):
        real = batch.target_tokens != 0
        log_probs = model.project(model(*batch.inputs)[real]).log_softmax(-1)
        loss = -log_probs.gather(1, batch.target_tokens[real][:, None]).sum()
        return {result}
@mtplug.hookimpl
def register_criteria(register): register("broken", Broken)
"""

SCHEDULE = """
class Broken:
    def __init__(self, config, max_updates): pass
    def __call__(self, update): return {factor}
    {more}
@mtplug.hookimpl
def register_lr_schedulers(register): register("broken", Broken)
"""

SEARCH = """
class Broken(SearchStrategy):
    def __init__(self, config): self.config = config
    def __call__(self, model, source_tokens, source_lengths):
        found = [[Hypothesis([5], 0.0, [0.0, 0.0])] for _ in source_tokens]
        return {result}
@mtplug.hookimpl
def register_search_strategies(register): register("broken", Broken)
"""

POSITION = """
class Broken(PositionEncoding):
    def __init__(self, config, stack):
        super().__init__()
        self.heads, self.dim = stack.heads, stack.dim
    {method}
@mtplug.hookimpl
def register_position_encodings(register): register("broken", Broken)
"""

ATTENTION = """
class Broken(AttentionBackend):
    def __init__(self, config): pass
    def why_not(self, call): return ""
    def __call__(self, q, k, v, **where): return {result}
@mtplug.hookimpl
def register_attention_backends(register): register("broken", Broken)
"""

TOKENIZER = """
class Letters(Tokenizer):
    def __len__(self): return 300
    def encode(self, texts): return [[5 for c in text[1:]] + [{id}] for text in texts]
    def decode(self, ids): return ["x" for row in ids]
    def tokens(self, ids): return [str(i) for i in ids]
    def save(self, folder, side):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / side).write_text("x")
    @classmethod
    def load(cls, folder, side): return cls()
class Broken:
    joint = True
    def __init__(self, config): pass
    def train(self, texts, side): return Letters()
    def load(self, folder, side): return Letters()
@mtplug.hookimpl
def register_tokenizers(register): register("broken", Broken)
"""

CORPUS = """
from pathlib import Path
class Broken(Corpus):
    def files(self): return [Path(__file__)]
    def __iter__(self): return iter([{pair}])
@mtplug.hookimpl
def register_corpora(register): register("broken", Broken)
"""

MISTAKES = [
    (CRITERION.format(result="loss"), "criterion.name=broken", "criterion Broken gives a Tensor; it has to be a mtplug.criteria.Loss"),
    (CRITERION.format(result="Loss(loss, real.sum() / 2, loss.detach())"), "criterion.name=broken", r"Loss.count has to be an int, not tensor\("),
    (CRITERION.format(result="Loss(loss, int(real.sum()), None)"), "criterion.name=broken", "Loss.nll has to be a tensor, not a NoneType"),
    (SCHEDULE.format(factor="None", more=""), "lr_scheduler={name: broken}", "lr_scheduler: the factor of update 4 is None"),
    (SCHEDULE.format(factor="-1.0", more=""), "lr_scheduler={name: broken}", "lr_scheduler: the factor of update 4 is -1.0"),
    (SCHEDULE.format(factor="float('nan')", more=""), "lr_scheduler={name: broken}", "lr_scheduler: the factor of update 4 is nan"),
    (SCHEDULE.format(factor="1.0", more="def validated(self, better): pass"), "lr_scheduler={name: broken}", r"Broken has validated\(better\), but no state and no restore"),
    (SEARCH.format(result="[one for (one,) in found]"), "validation.search={name: broken}", "gives a Hypothesis for one"),
    (SEARCH.format(result="found[1:]"), "validation.search={name: broken}", "of them"),
    (SEARCH.format(result="[[] for _ in found]"), "validation.search={name: broken}", "gives an empty one"),
    (SEARCH.format(result="[['text'] for _ in found]"), "validation.search={name: broken}", "gives a list with a str"),
    (POSITION.format(method="def embed(self, start, length): return torch.zeros(1)"), "architecture.position={name: broken}", r"position encoding Broken: embed gives \(1,\)"),
    (POSITION.format(method="def schemes(self, layer): return positions.Linear(torch.ones(self.heads))"), "architecture.position={name: broken}", "position encoding Broken: schemes gives a Linear; it has to be a tuple"),
    (POSITION.format(method="def schemes(self, layer): return (positions.ClippedBias(torch.ones(self.heads, 4)),)"), "architecture.position={name: broken}", r"ClippedBias.table has to be \(H, 2D\+1\), not \(\d+, 4\)"),
    (ATTENTION.format(result="(v, None)"), "architecture.attention.backend=broken", "attention backend 'broken' gives a tuple"),
    (ATTENTION.format(result="q.transpose(1, 2)"), "architecture.attention.backend=broken", r"attention backend 'broken' gives \("),
    (TOKENIZER.format(id="0"), "tokenizer={name: broken}", "tokenizer Letters: encode gives the id 0, which is padding"),
    (TOKENIZER.format(id="300"), "tokenizer={name: broken}", "tokenizer Letters: encode gives the id 300, and has 300 of them"),
    (CORPUS.format(pair="('a b', 'c d', 3)"), "data.train={name: broken}", r"corpus Broken gives \(str, str, int\)"),
    (CORPUS.format(pair="('a b', None)"), "data.train={name: broken}", r"corpus Broken gives \(str, NoneType\)"),
    (CORPUS.format(pair="{'source': 'a', 'target': 'b'}"), "data.train={name: broken}", r"corpus Broken gives \(dict\)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("broken")
    tiny.write_corpus(made)
    return made


@pytest.mark.parametrize(("source", "setting", "told"), MISTAKES)
def test_what_a_component_gives_is_checked_where_it_is_used(
    folder, tmp_path, source, setting, told
):
    file = tmp_path / "broken.py"
    file.write_text(HEAD + source)
    line = tiny.arguments(folder, tmp_path.name, "--plugin", str(file), setting)
    done = tiny.called("train", *line, "training.max_updates=4", "validation.every_updates=2")
    last = done.stderr.splitlines()[-1]
    assert done.returncode in (1, 2) and re.search(told, last), last


CONFIG = """
@dataclass
class Settings:
    {field}
class Made:
    def __init__(self, config, max_updates): pass
    def __call__(self, update): return 1.0
@mtplug.hookimpl
def register_lr_schedulers(register): register("made", Made, Settings)
"""


def _chosen(tmp_path, monkeypatch, source, *overrides):
    from mtplug import plugins

    file = tmp_path / "settings.py"
    file.write_text(HEAD + source)
    monkeypatch.setattr(plugins, "_current", PluginHost(files=[file]))
    return component_from_overrides("lr_schedulers", "made", overrides)


@pytest.mark.parametrize(
    ("field", "override", "told"),
    [
        ("peak = 3", "peak=4", "Settings.peak is no field: write `peak: TYPE = DEFAULT`"),
        ("peaks: list = field(default_factory=list)", "peaks=[1]", "cannot be of type list"),
        ("peaks: set[int] = field(default_factory=set)", "peaks=[1]", r"cannot be of type set\[int\]"),
        ("peak: 'Nowhere' = 3", "peak=4", "Settings cannot be found: name 'Nowhere' is not defined"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_told_as_their_author_wrote_them(
    tmp_path, monkeypatch, field, override, told
):
    with pytest.raises(UserError, match=told):
        _chosen(tmp_path, monkeypatch, CONFIG.format(field=field), override)


def test_a_setting_called_name_is_refused_as_it_could_never_be_set(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="the config of 'made' has a field 'name'"):
        _chosen(tmp_path, monkeypatch, CONFIG.format(field="name: str = 'x'"))


def test_a_factory_of_other_arguments_is_told_with_its_component(tmp_path, monkeypatch):
    source = CONFIG.format(field="peak: int = 3").replace("config, max_updates", "config")
    chosen = _chosen(tmp_path, monkeypatch, source)
    with pytest.raises(
        UserError,
        match=r"lr_scheduler 'made' of plugin file settings\.py:settings cannot be made: ",
    ):
        chosen.build(100)  # fmt: skip


def test_a_type_error_within_a_factory_is_its_own(tmp_path, monkeypatch):
    source = CONFIG.format(field="peak: int = 3").replace("max_updates): pass", "most): most + 'x'")
    with pytest.raises(TypeError, match="unsupported operand"):
        _chosen(tmp_path, monkeypatch, source).build(100)


@pytest.mark.parametrize(
    ("implementation", "told"),
    [
        ("register_criteria(register, config)", r"register_criteria\(config\): there is no such argument"),
        ("on_update_end(trainer, step)", r"on_update_end\(step\): .* called with trainer, update, loss"),
    ],
)  # fmt: skip
def test_an_argument_that_a_hook_does_not_have_is_named_with_those_it_has(
    tmp_path, implementation, told
):
    file = tmp_path / "arguments.py"
    file.write_text(f"import mtplug\n@mtplug.hookimpl\ndef {implementation}: pass\n")
    with pytest.raises(UserError, match=told):
        PluginHost(files=[file])


def test_show_does_not_print_the_documentation_of_a_base(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        HEAD
        + "class Broken(nn.Module):\n    def forward(self, model, batch): pass\n\n"
        + '@mtplug.hookimpl\ndef register_criteria(register): register("broken", Broken)\n'
    )
    done = tiny.called("plugins", "show", "criterion", "broken", "--plugin", str(file))
    assert done.returncode == 0
    assert "Base class for all neural network modules" not in done.stdout
