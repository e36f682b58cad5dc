"""The benchmark suite."""

from mtplug import testing
from mtplug.cli.bench import main


def test_it_keeps_its_contract():
    testing.check_benchmark("NAME", "sizes=[8]", "rounds=1")


def test_suite_runs(capsys):
    assert main(["run", "NAME", "sizes=[8, 16]", "rounds=1"]) == 0
    table = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[0] for line in table] == ["size", "8", "16"]
