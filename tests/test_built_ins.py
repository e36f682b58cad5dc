"""The runtime promise about built-ins: nobody needs one by name, and each can be blocked."""

import ast
import importlib
import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import mtplug
from mtplug import plugins, testing
from mtplug.errors import UserError
from mtplug.plugins import PluginHost
from mtplug.scaffold import TEMPLATES, USAGE

PACKAGE = Path(mtplug.__file__).parent
BUILT_IN = {
    e.name: e.value for e in entry_points(group="mtplug") if e.dist and e.dist.name == "mtplug"
}
INSTALLED = {
    e.dist.name for e in entry_points(group="mtplug") if e.dist
}  # plugins' users run this, too

# For each built-in that a tiny run needs: the settings that put another plugin's component in its place.
# The other plugins are the templates, whose components all have the name NAME.
PAIRS = "{name: NAME, path: pairs.txt}"
REPLACED = {
    "adam": ["optimizer={name: NAME}"],
    "attention": ["architecture.attention.backend=NAME"],
    "cross_entropy": ["criterion={name: NAME}"],
    "metrics": ["validation.metrics=[{name: NAME}]", "validation.best_metric=NAME"],
    "positions": ["architecture.position={name: NAME}"],
    "schedules": ["lr_scheduler={name: NAME}"],
    "search": ["search={name: NAME}"],
    "search_stepwise": ["validation.search={name: NAME}"],
    "text": [f"data.{split}={PAIRS}" for split in ("train", "valid", "test")],
    "tokenizers": ["tokenizer={name: NAME}"],
    "trackers": ["logging.trackers=[{name: NAME}]"],
    "transformer": ["architecture={name: NAME}"],
    "translation": ["task={name: NAME}"],
}


def core_files() -> list[Path]:
    """All of the package but the built-ins themselves and what only re-exports them to plugins."""
    apart = {PACKAGE.parent / (module.replace(".", "/") + ".py") for module in BUILT_IN.values()}
    return [
        file
        for file in PACKAGE.rglob("*.py")
        if file not in apart and file.name != "__init__.py" and TEMPLATES not in file.parents
    ]


def test_core_imports_no_built_in_component():
    host = PluginHost()
    components = [host.component(kind, name) for kind in host.kinds() for name in host.names(kind)]
    built_in = {id(c.factory) for c in components} | {
        id(c.config) for c in components if c.config is not mtplug.registry.NoConfig
    }
    found = []
    for file in core_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("mtplug"):
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                if id(getattr(module, alias.name, None)) in built_in:
                    found.append(f"{file.relative_to(PACKAGE)}:{node.lineno} {alias.name}")
    assert len(components) > 15
    assert found == []


@pytest.fixture
def blocked(monkeypatch):
    """Makes a host without these built-ins, and with every template as a plugin."""

    def without(*names: str) -> PluginHost:
        files = [TEMPLATES / f"{kind}.py" for kind in USAGE if kind != "hooks"]
        block = [f"mtplug:{name}" for name in names]
        monkeypatch.setattr(plugins, "_current", PluginHost(block=block, files=files))
        return plugins.host()

    return without


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_any_one_built_in_can_be_blocked(name, blocked):
    host = blocked(name)
    for kind in host.kinds():
        for component in host.names(kind):
            assert host.component(kind, component).plugin != f"mtplug:{name}"
    states = {p.name: p.state for p in host.plugins.values() if p.distribution == "mtplug"}
    assert states.pop(name) == "blocked" and set(states.values()) == {"ok"}


def trained(folder: Path, names: set[str], *settings: str) -> None:
    """A run without these built-ins."""
    run = testing.train(folder, *settings)
    assert (run / "checkpoints" / "last" / "model.safetensors").is_file()
    needed = json.loads((run / "environment.json").read_text())["plugins"]
    assert not names & {p["name"] for p in needed if p["distribution"] == "mtplug"}


@pytest.mark.parametrize("name", REPLACED)
def test_without_a_built_in_that_it_needs_a_run_says_so_and_trains_with_anothers(
    name, blocked, tmp_path
):
    blocked(name)
    pairs = "".join(f"{s} ||| {t}\n" for s, t in testing.pairs(60, seed=1))
    testing.write_corpus(tmp_path)
    (tmp_path / "pairs.txt").write_text(pairs)
    with pytest.raises(UserError, match=f"blocked: '{name}' \\(mtplug"):
        testing.train(tmp_path, name="first")
    trained(tmp_path, {name}, *REPLACED[name])


def test_without_all_built_ins_that_it_does_not_need_a_run_trains(blocked, tmp_path):
    others = set(BUILT_IN) - set(REPLACED)
    blocked(*others)
    trained(tmp_path, others)


def test_without_any_built_in_at_all_a_run_of_other_plugins_trains(monkeypatch, tmp_path):
    files = [TEMPLATES / f"{kind}.py" for kind in USAGE if kind != "hooks"]
    monkeypatch.setattr(plugins, "_current", PluginHost(block=INSTALLED, files=files))
    assert plugins.host().names("metrics") == ["NAME"]
    (tmp_path / "pairs.txt").write_text("ka lo ||| one two\n" * 20)
    settings = [setting for replaced in REPLACED.values() for setting in replaced]
    architecture = (
        "position: {name: NAME}, attention: {backend: NAME}, dim: 16, ffn_dim: 16, heads: 2"
    )
    task = "task={name: NAME, source_lang: xx, target_lang: en}"
    run = testing.train(
        tmp_path,
        *(s for s in settings if not s.startswith(("architecture", "task"))),
        f"architecture={{name: NAME, encoder_layers: 1, decoder_layers: 1, {architecture}}}",
        task,
        "peft={name: NAME}",
    )
    needed = json.loads((run / "environment.json").read_text())["plugins"]
    assert len(needed) == 13
    assert not [p for p in needed if p["distribution"] == "mtplug"]
