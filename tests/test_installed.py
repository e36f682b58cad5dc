"""Stale and damaged installations of plugins are told in one line each, and harm nobody else."""

import json
import sys

import pytest

from mtplug import plugins
from mtplug.cli.plugins import main

ABOUT = "Metadata-Version: 2.1\nName: mtplug-odd\nVersion: 1.5\n"
MODULE = (
    "import mtplug\n\n@mtplug.hookimpl\ndef register_lr_schedulers(register):\n"
    "    register('odd', lambda config, max_updates: float)\n"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What is learnt of the built-ins, once for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def packages(tmp_path, monkeypatch, cache):
    """A folder of sys.path with an installed plugin, to be damaged."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(plugins, "_current", None)
    for variable in ("MTPLUG_BLOCK", "MTPLUG_PLUGIN_FILES"):
        monkeypatch.setenv(variable, "")
    folder = tmp_path / "packages"
    info = folder / "mtplug_odd-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(ABOUT)
    (info / "entry_points.txt").write_text("[mtplug]\nodd = odd_plugin\n")
    (folder / "odd_plugin.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def listed(capsys):
    assert main(["list", "--json"]) == 0
    return {p["distribution"]: p for p in json.loads(capsys.readouterr().out)}


def test_sound_installation_is_fine(packages, capsys):
    odd = listed(capsys)["mtplug-odd"]
    assert (odd["version"], odd["state"]) == ("1.5", "ok")


METADATA, ENTRIES = (
    f"mtplug_odd-1.5.dist-info/{name}" for name in ("METADATA", "entry_points.txt")
)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("odd_plugin.py", None, "its module odd_plugin is not there"),
        (METADATA, None, "it gives no name or no version: install mtplug-odd again"),
        (METADATA, b"", "it gives no name or no version: install mtplug-odd again"),
        (METADATA, b"Name: mtplug-odd\n", "it gives no name or no version"),
        (ENTRIES, b"[mtplug]\nodd\n", "entry_points.txt cannot be read"),
        (ENTRIES, b"[mtplug\nodd = odd_plugin\n", "[mtplug] names nothing"),
        (ENTRIES, b"[mtplug]\n\xff = odd_plugin\n", "entry_points.txt cannot be read"),
        (ENTRIES, b"[mtplug]\nodd = not a module!\n", "names no module: 'not a module!'"),
    ],
)
def test_damage_is_a_line_of_the_list(packages, file, content, said, capsys):
    (packages / file).unlink()
    if content is not None:
        (packages / file).write_bytes(content)
    found = listed(capsys)
    assert found["mtplug-odd"]["state"] == "failed" and said in found["mtplug-odd"]["error"]
    assert found["mtplug"]["state"] == "ok"


def test_doctor_finds_trouble_in_damage_and_in_requirements_that_cannot_be_checked(
    packages, capsys
):
    needs = "Requires-Dist: mtplug >>> 1\nRequires-Dist: mtplug-bare>=1\n"
    (packages / METADATA).write_text(ABOUT + needs)
    bare = packages / "mtplug_bare-1.dist-info"
    bare.mkdir()
    (bare / "METADATA").write_text("Name: mtplug-bare\nVersion: of late\n")
    (bare / "entry_points.txt").write_text("[mtplug]\n")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "requires 'mtplug >>> 1', which cannot be read" in printed
    assert "needs mtplug-bare>=1, but" in printed
    assert "'mtplug-bare' (mtplug-bare 1)" in printed and "[mtplug] names nothing" in printed
    assert printed.splitlines()[-1].startswith("2 of ")


def test_metadata_left_behind_in_the_current_folder_changes_nothing(
    packages, tmp_path, monkeypatch, capsys
):
    """A child process that looked there too knew other plugins than its parent: KeyError."""
    stale = tmp_path / "source" / "mtplug_odd.egg-info"
    stale.mkdir(parents=True)
    (stale / "PKG-INFO").write_text(ABOUT.replace("1.5", "0.1"))
    (stale / "entry_points.txt").write_text("[mtplug]\nold = gone\n")
    monkeypatch.chdir(stale.parent)
    odd = listed(capsys)["mtplug-odd"]
    assert (odd["name"], odd["version"], odd["state"]) == ("odd", "1.5", "ok")


def test_distribution_found_first_hides_another_of_its_name(
    packages, tmp_path, monkeypatch, capsys
):
    older = tmp_path / "older" / "mtplug.odd-0.9.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Name: mtplug.odd\nVersion: 0.9\n")
    (older / "entry_points.txt").write_text("[mtplug]\nodd = odd_plugin\nold = gone\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.parent)])
    assert [d for d in listed(capsys) if "odd" in d] == ["mtplug-odd"]
