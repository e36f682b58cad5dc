"""What `mtplug-plugins new` writes installs, and its own tests pass untouched."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mtplug.errors import UserError
from mtplug.registry import KINDS, plural
from mtplug.scaffold import TEMPLATES, USAGE, write_package
from tests.distributions import install_and_test

GROUPS = {
    "training": "architecture,position_encoding,attention_backend,peft_method,"
    "criterion,optimizer,lr_scheduler,task,hooks",
    "text": "tokenizer,corpus,metric,search_strategy,tracker,exporter,benchmark",
}


def test_groups_below_hold_every_kind():
    grouped = [kind for kinds in GROUPS.values() for kind in kinds.split(",")]
    assert sorted(grouped) == sorted(USAGE)
    assert {plural(kind) for kind in grouped} == {*KINDS, "hooks"}


@pytest.mark.parametrize("group", GROUPS)
def test_written_package_installs_and_its_tests_pass(group, tmp_path):
    command = [sys.executable, "-m", "mtplug.cli.plugins", "new", f"fresh-{group}"]
    done = subprocess.run(
        [*command, "--with", GROUPS[group], "--folder", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    package = tmp_path / f"mtplug-fresh-{group}"
    printed = install_and_test(package, tmp_path / "target")
    assert f"{_count(package)} passed" in printed


def _count(package: Path) -> int:
    return sum(file.read_text().count("\ndef test_") for file in package.rglob("test_*.py"))


def test_package_is_complete_and_no_placeholder_is_left(tmp_path):
    folder = write_package("my_idea", list(USAGE), tmp_path)
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert {"README.md", "pyproject.toml", ".github/workflows/test.yml"} <= files
    for file in folder.rglob("*"):
        if file.is_file():
            words = set(file.read_text().replace(".", " ").replace('"', " ").split())
            assert not words & {"NAME", "PACKAGE", "DIST", "KINDS", "ENTRIES", "USAGE", "VERSION"}
        if file.suffix == ".py":
            compile(file.read_text(), str(file), "exec")
    project = (folder / "pyproject.toml").read_text()
    assert 'name = "mtplug-my-idea"' in project
    modules = re.findall(r'^my_idea_\w+ = "(.*)"$', project, re.M)
    assert len(modules) == len(USAGE)
    for module in modules:
        assert (folder / f"{module.replace('.', '/')}.py").is_file()
    jobs = yaml.safe_load((folder / ".github/workflows/test.yml").read_text())["jobs"]
    assert "pytest" in [step.get("run") for step in jobs["test"]["steps"]]


def test_every_template_is_used():
    assert {f.stem for f in TEMPLATES.glob("*.py")} == {*USAGE, *(f"test_{k}" for k in USAGE)}


def test_kinds_may_be_called_as_configurations_call_them(tmp_path):
    folder = write_package("short", ["peft", "position", "criteria", "peft_methods"], tmp_path)
    modules = {file.stem for file in (folder / "mtplug_short").glob("*.py")}
    assert modules == {"__init__", "peft_method", "position_encoding", "criterion"}


@pytest.mark.parametrize("name", ["naïve", "a-", "a--b", "Class", "my idea", "../up", "9lives", ""])
def test_name_that_no_distribution_can_have_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="is no name for a package"):
        write_package(name, ["task"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_name_that_is_taken_is_refused_before_two_plugins_claim_it(tmp_path):
    with pytest.raises(UserError, match="the optimizer 'adam' is there already"):
        write_package("adam", ["optimizer"], tmp_path)
    write_package("adam", ["criterion"], tmp_path)


def test_a_full_disk_leaves_no_half_of_a_package(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="mtplug-x cannot be made: No space left on device"):
        write_package("x", ["task"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'criterion'"):
        write_package("x", ["criterio"], tmp_path)
    with pytest.raises(UserError, match="names no kind"):
        write_package("x", [], tmp_path)
    write_package("twice", ["task"], tmp_path)
    with pytest.raises(UserError, match="is there already"):
        write_package("twice", ["task"], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/mtplug-y cannot be made: Not a directory"):
        write_package("y", ["task"], tmp_path / "file")
