"""The plugin core with real distributions, built and installed by pip into an environment of their own."""

import json
import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from mtplug.errors import UserError
from mtplug.plugins import PluginHost
from tests.distributions import HEAD, SCHEDULE, install, run

# distribution: (entry point, module's text)
DISTRIBUTIONS = {
    "t-good": ("good", HEAD + SCHEDULE.format(name="goodsched")),
    "t-raises": ("raises", "raise RuntimeError('the sky fell')\n"),
    "t-exits": ("exits", "import os\nos._exit(3)\n"),
    "t-taken": ("taken", HEAD + SCHEDULE.format(name="cosine")),
    "t-misspelt": (
        "misspelt",
        HEAD + SCHEDULE.format(name="spelt").replace("lr_schedulers", "lr_schedulrs"),
    ),
    "t-old": ("old", HEAD + "MTPLUG_API = {'lr_schedulers': 99}\n" + SCHEDULE.format(name="oldie")),
    "t-twin-a": ("twin", HEAD + SCHEDULE.format(name="twin_a")),
    "t-twin-b": ("twin", HEAD + SCHEDULE.format(name="twin_b")),
    "t-half": (
        "half",
        HEAD
        + SCHEDULE.format(name="halfsched")
        + "@mtplug.hookimpl\ndef register_metrics(register):\n    raise ValueError('half way')\n",
    ),
    "t-kind": (
        "kindmaker",
        HEAD
        + "@mtplug.hookimpl\ndef register_kinds(register):\n    register('scorers', 'of things')\n",
    ),
    "t-filler": (
        "afiller",
        HEAD
        + "@mtplug.hookimpl\ndef register_scorers(register):\n    register('nice', lambda c: 'nice!')\n",
    ),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A Python with mtplug and all of `DISTRIBUTIONS`."""
    return install(tmp_path_factory.mktemp("plugins"), DISTRIBUTIONS)


@pytest.fixture(scope="module")
def listed(installed):
    done = run(installed, "-m", "mtplug.cli.plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    return {f"{p['distribution']}:{p['name']}": p for p in json.loads(done.stdout)}


def test_good_plugin_is_listed_with_version_and_what_it_registers(listed):
    good = listed["t-good:good"]
    assert (good["version"], good["state"]) == ("1.5", "ok")
    assert good["registers"] == {"lr_schedulers": ["goodsched"]}


def test_plugin_that_raises_on_import_is_reported_with_its_last_line(listed):
    raises = listed["t-raises:raises"]
    assert raises["state"] == "failed"
    assert "RuntimeError: the sky fell" in raises["error"]


def test_plugin_that_ends_the_process_takes_nobody_along(listed):
    assert listed["t-exits:exits"]["state"] == "failed"
    assert listed["mtplug:transformer"]["registers"] == {"architectures": ["transformer"]}


def test_misspelt_hook_is_an_error_that_suggests_the_right_one(listed):
    misspelt = listed["t-misspelt:misspelt"]
    assert misspelt["state"] == "failed"
    assert "register_lr_schedulrs" in misspelt["error"]
    assert "'register_lr_schedulers'" in misspelt["error"]


def test_plugin_for_another_version_of_a_kind_is_refused(listed):
    assert "version 99" in listed["t-old:old"]["error"]


def test_plugin_whose_second_hook_raises_registers_nothing(listed):
    half = listed["t-half:half"]
    assert half["state"] == "failed" and "half way" in half["error"]
    assert half["registers"] == {}


def test_two_plugins_of_one_name_both_work(listed):
    assert listed["t-twin-a:twin"]["registers"] == {"lr_schedulers": ["twin_a"]}
    assert listed["t-twin-b:twin"]["registers"] == {"lr_schedulers": ["twin_b"]}


def test_kind_of_a_plugin_is_filled_by_another_that_sorts_before_it(installed, listed):
    assert listed["t-kind:kindmaker"]["kinds"] == ["scorers"]
    assert listed["t-filler:afiller"]["registers"] == {"scorers": ["nice"]}
    code = "from mtplug.plugins import host; print(host().component('scorers', 'nice').factory(0))"
    done = run(installed, "-c", code)
    assert done.stdout.strip() == "nice!", done.stderr


def test_claimed_name_stops_with_both_names_and_how_to_block_one(installed, listed):
    assert listed["t-taken:taken"]["state"] == "conflict"
    done = run(installed, "-m", "mtplug.cli.plugins", "show", "lr_scheduler", "cosine")
    assert done.returncode == 2
    for part in ("'taken' (t-taken 1.5)", "'schedules' (mtplug", "--block"):
        assert part in done.stderr
    for blocked in ("taken", "t-taken", "t-taken:taken"):
        done = run(
            installed, "-m", "mtplug.cli.plugins", "show", "lr_scheduler", "cosine", blocked=blocked
        )
        assert done.returncode == 0 and "of plugin schedules" in done.stdout
    done = run(
        installed, "-m", "mtplug.cli.plugins", "show", "lr_scheduler", "cosine",
        "--block", "schedules",
    )  # fmt: skip
    assert "of plugin taken" in done.stdout and "where it is highest" in done.stdout


def test_block_of_what_is_no_plugin_is_refused(installed):
    for name, said in (
        ("schedulez", "did you mean 'schedules'?"),
        ("Ω", "mtplug-plugins list names them all"),
    ):
        done = run(installed, "-m", "mtplug.cli.plugins", "list", "--block", f"taken,{name}")
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"--block {name}: there is no such plugin; {said}" in done.stderr


def test_show_gives_docstring_and_settings_with_help(installed):
    done = run(installed, "-m", "mtplug.cli.plugins", "show", "lr_schedulers", "goodsched")
    assert "One line about goodsched." in done.stdout
    assert "peak: int = 7" in done.stdout and "where it is highest" in done.stdout
    assert "t-good 1.5" in done.stdout


def test_show_of_no_kind_names_it_as_it_was_given(installed):
    done = run(installed, "-m", "mtplug.cli.plugins", "show", "architectur", "x")
    said = "mtplug-plugins: unknown kind 'architectur'; did you mean 'architecture'?\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_unknown_component_names_the_plugins_that_did_not_load(installed):
    done = run(installed, "-m", "mtplug.cli.plugins", "show", "lr_scheduler", "spelt")
    assert done.returncode == 2
    assert "'misspelt' (t-misspelt 1.5) failed: unknown hook" in done.stderr


def test_lists_of_one_kind_name_the_plugins_that_did_not_load(installed):
    """What they have was missing without a word."""
    for command in (("bench", "list"), ("plugins", "show", "metrics")):
        done = run(installed, "-m", f"mtplug.cli.{command[0]}", *command[1:])
        assert done.returncode == 0 and done.stdout.count("\n") > 3
        for part in ("'raises' (t-raises 1.5)", "the sky fell", "'half' (t-half 1.5)", "half way"):
            assert part in done.stderr
        assert "t-good" not in done.stderr


def test_two_plugin_files_of_one_name_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "idea.py").write_text(HEAD + SCHEDULE.format(name=f"from_{name}"))
    files = [tmp_path / name / "idea.py" for name in "ab"]
    with pytest.raises(
        UserError, match=r"b/idea.py: another plugin file is called idea.py; rename one"
    ):
        PluginHost(files=files)
    assert PluginHost(files=[files[0], files[0]]).component("lr_schedulers", "from_a")


def test_of_a_file_and_a_built_in_that_claim_one_name_the_built_in_can_be_blocked(tmp_path):
    file = tmp_path / "dup.py"
    file.write_text(HEAD + SCHEDULE.format(name="cosine"))
    with pytest.raises(UserError, match="--block mtplug:") as raised:
        PluginHost(files=[file]).component("lr_schedulers", "cosine")
    block = str(raised.value).split("--block ")[1]
    host = PluginHost(block=[block], files=[file])
    assert host.component("lr_schedulers", "cosine").plugin == "file dup.py:dup"


@pytest.mark.parametrize("hook", ["register_criteria(register)", "on_update_end(trainer)"])
def test_a_hook_that_is_not_marked_is_told(tmp_path, hook):
    file = tmp_path / "unmarked.py"
    file.write_text(f"def {hook}: pass\n")
    with pytest.raises(UserError, match=f"{hook.split('(')[0]} is not marked @mtplug.hookimpl"):
        PluginHost(files=[file])


def test_an_error_of_several_lines_is_told_by_its_first(tmp_path):
    file = tmp_path / "ml.py"
    file.write_text("raise RuntimeError('cannot open the model file\\nsee the manual')\n")
    with pytest.raises(UserError, match=r"RuntimeError: cannot open the model file \(ml.py:1\)"):
        PluginHost(files=[file])


def test_a_suite_that_two_plugins_claim_does_not_end_the_list(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.py").write_text(
            HEAD + SCHEDULE.format(name="twice").replace("lr_schedulers", "benchmarks")
        )
    options = [x for name in "ab" for x in ("--plugin", tmp_path / f"{name}.py")]
    done = run(sys.executable, "-m", "mtplug.cli.bench", "list", *options)
    assert done.returncode == 0 and "attention  " in done.stdout
    assert "not listed: benchmark 'twice' is claimed by 'a'" in done.stderr


def test_training_with_a_component_of_a_failed_plugin_names_its_cause(installed, tmp_path):
    (tmp_path / "c.yaml").write_text("lr_scheduler: {name: halfsched}\n")
    done = run(installed, "-m", "mtplug.cli.train", tmp_path / "c.yaml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "halfsched" in done.stderr and "half way" in done.stderr


def test_run_imports_only_the_plugins_that_it_names(installed):
    code = (
        "import sys; from mtplug.plugins import host; host().component('lr_schedulers', 'goodsched');"
        "print('t_good' in sys.modules, 't_twin_a' in sys.modules, 'torch' in sys.modules)"
    )
    assert run(installed, "-c", code).stdout.split() == ["True", "False", "False"]


def test_listing_imports_neither_torch_nor_any_plugin(installed):
    code = (
        "import sys; from mtplug.cli.plugins import main; main(['list']);"
        "print(sorted(m for m in sys.modules if m in ('torch', 't_good', 'numpy')), file=sys.stderr)"
    )
    assert run(installed, "-c", code).stderr.strip() == "[]"


def test_what_a_plugin_registers_is_remembered_until_its_file_changes(installed, tmp_path):
    cache = tmp_path / "cache"
    blocked = "t-raises,t-exits,t-misspelt,t-old,t-half"
    code = (
        "import mtplug.plugins as p, mtplug.inspection as i\ncalls = []\nreal = i._in_child\n"
        "i._in_child = lambda *ids: calls.append(ids) or real(*ids)\n"
        "p.host().inspect()\nprint(len(calls), p.host().names('lr_schedulers'))"
    )
    first = run(installed, "-c", code, blocked=blocked, cache=cache).stdout
    assert first.startswith("1 ") and "goodsched" in first
    assert run(installed, "-c", code, blocked=blocked, cache=cache).stdout.startswith("0 ")
    (module,) = installed.parents[1].glob("lib/python*/site-packages/t_good.py")
    text = module.read_text()
    try:
        module.write_text(text.replace('"goodsched"', '"renamed"'))
        third = run(installed, "-c", code, blocked=blocked, cache=cache).stdout
        assert third.startswith("1 ") and "renamed" in third
    finally:
        module.write_text(text)


def test_file_given_by_option_is_a_plugin(tmp_path, installed):
    file = tmp_path / "mine.py"
    file.write_text(HEAD + SCHEDULE.format(name="minesched"))
    show = ("-m", "mtplug.cli.plugins", "show", "lr_scheduler", "minesched")
    done = run(installed, *show, "--plugin", file)
    assert done.returncode == 0 and "file mine.py" in done.stdout
    file.write_text("import nothing_of_that_name\n")
    done = run(installed, *show, "--plugin", file)
    assert done.returncode == 2 and "nothing_of_that_name" in done.stderr
    file.write_text("import mtplug\n\n\nx = (\n")
    done = run(installed, *show, "--plugin", file)
    assert "SyntaxError: '(' was never closed (mine.py:4)" in done.stderr
    done = run(installed, *show, "--plugin", tmp_path / "absent.py")
    assert done.returncode == 2 and "no such file" in done.stderr


def test_missing_plugin_of_a_run_says_what_to_install():
    from mtplug.errors import UserError
    from mtplug.plugins import PluginHost

    needed = [{"name": "gone", "distribution": "mtplug-gone", "version": "2.1"}]
    with pytest.raises(
        UserError, match=r"runs/x needs plugin 'gone'.*pip install mtplug-gone==2\.1"
    ):
        PluginHost().require(needed, "runs/x")


def test_a_plugin_that_fails_by_now_is_missed_too(tmp_path, monkeypatch):
    host = PluginHost()
    plugin = next(p for p in host.plugins.values() if p.name == "metrics")
    plugin.state, plugin.error = "failed", "ModuleNotFoundError: nothere"
    needed = [{"name": plugin.name, "distribution": plugin.distribution, "version": "1"}]
    with pytest.raises(UserError, match="which failed: ModuleNotFoundError: nothere"):
        host.require(needed, "runs/x")


def test_a_mistyped_name_is_told_where_a_run_lacks_another_plugin(tmp_path):
    """The run's folder wants a plugin that is not here; only what that plugin had is explained by it."""
    from mtplug.config import load_config
    from mtplug.errors import UserError

    gone = {"name": "gone", "distribution": "mtplug-gone", "version": "2.1",
            "components": {"optimizers": ["fast"]}}  # fmt: skip
    (tmp_path / "environment.json").write_text(json.dumps({"plugins": [gone]}))
    with pytest.raises(UserError, match="did you mean 'adam'"):
        load_config(None, [f"run_dir={tmp_path}", "optimizer.name=adm"])
    with pytest.raises(UserError, match=r"pip install mtplug-gone==2\.1"):
        load_config(None, [f"run_dir={tmp_path}", "optimizer.name=fast"])


def test_same_name_twice_within_a_plugin_is_an_error(tmp_path):
    from mtplug.errors import UserError
    from mtplug.plugins import PluginHost

    file = tmp_path / "twice.py"
    file.write_text(
        HEAD + "@mtplug.hookimpl\ndef register_metrics(register):\n"
        "    register('m', print)\n    register('m', print)\n"
    )
    with pytest.raises(UserError, match="registered twice"):
        PluginHost(files=[file])


def test_settings_of_a_corpus_without_those_that_every_corpus_has_are_refused(tmp_path):
    """Its `weight` and languages were the defaults without a word, whatever a configuration said."""
    file = tmp_path / "corpus.py"
    text = HEAD + (
        "from dataclasses import dataclass\n@dataclass\nclass Plain:\n    path: str = ''\n"
        "@mtplug.hookimpl\ndef register_corpora(register): register('plain', print, Plain)\n"
    )
    file.write_text(text)
    said = "Plain, the config of 'plain', does not derive from mtplug.data.corpora.CorpusConfig"
    with pytest.raises(UserError, match=re.escape(said)):
        PluginHost(files=[file])
    file.write_text(text.replace(", Plain)", ")"))
    assert PluginHost(files=[file]).component("corpora", "plain").config().weight == 1


def test_help_of_every_command_is_fast_and_imports_no_torch():
    scripts = entry_points(group="console_scripts")
    commands = [s.module for s in scripts if s.name.startswith("mtplug-")]
    assert "mtplug.cli.train" in commands
    code = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name).main(['--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'omegaconf', 'sentencepiece', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_file_can_be_blocked_and_may_fill_a_kind_that_a_later_one_defines(tmp_path):
    """--block did not look at files, and files worked in one order only."""
    fills, defines = tmp_path / "fills.py", tmp_path / "defines.py"
    fills.write_text(DISTRIBUTIONS["t-filler"][1])
    defines.write_text(DISTRIBUTIONS["t-kind"][1])
    host = PluginHost(files=[fills, defines])
    assert host.names("scorers") == ["nice"]
    with pytest.raises(UserError, match=r"fills\.py: unknown hook 'register_scorers'"):
        PluginHost(files=[fills])
    for name in ("fills", "file fills.py", "file fills.py:fills"):
        host = PluginHost([name], [fills, defines])
        assert host.plugins["file fills.py:fills"].state == "blocked" and not host.names("scorers")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("2", r"expected a mapping of kinds to whole numbers, such as .*, got 2"),
        ("{'metrics': '1'}", r"got '1' for 'metrics'"),
    ],
)
def test_versions_that_are_none_are_told(tmp_path, given, said):
    file = tmp_path / "odd.py"
    file.write_text(f"{HEAD}MTPLUG_API = {given}\n{SCHEDULE.format(name='odd')}")
    with pytest.raises(UserError, match=rf"MTPLUG_API: .*{said}"):
        PluginHost(files=[file])


def test_a_version_of_no_kind_is_warned_of(tmp_path):
    file = tmp_path / "odd.py"
    text = f"{HEAD}MTPLUG_API = {{'lr_schedulrs': 1}}\n{SCHEDULE.format(name='odd')}"
    file.write_text(text)
    with pytest.warns(
        RuntimeWarning, match=r"unknown kind 'lr_schedulrs'; did you mean 'lr_schedulers'"
    ):
        host = PluginHost(files=[file])
    assert "odd" in host.names("lr_schedulers")


def test_show_of_a_kind_that_ends_in_no_s_and_help_of_metadata(tmp_path, capsys):
    from mtplug.cli.plugins import main

    file = tmp_path / "mood.py"
    file.write_text(
        "from dataclasses import dataclass, field\nimport mtplug\n\n\n@dataclass\nclass Happy:\n"
        "    weight: float = field(default=0.5, metadata={'help': 'how much of it'})\n\n\n"
        "@mtplug.hookimpl\ndef register_kinds(register):\n    register('schedulers_of_mood', '')\n\n\n"
        "@mtplug.hookimpl\ndef register_schedulers_of_mood(register):\n    register('happy', lambda c: 1, Happy)\n"
    )
    assert main(["show", "schedulers_of_mood", "happy", "--plugin", str(file)]) == 0
    assert "how much of it" in capsys.readouterr().out
