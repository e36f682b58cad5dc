"""Each first-party plugin installs as a distribution of its own and passes its own tests."""

from pathlib import Path

import pytest

from tests.distributions import install_and_test

PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.mark.parametrize("name", sorted(p.parent.name for p in PLUGINS.glob("*/pyproject.toml")))
def test_first_party_plugin_passes_its_tests(name, mtplug_run, tmp_path):
    assert (PLUGINS / name / "README.md").is_file()
    assert " passed" in install_and_test(PLUGINS / name, tmp_path / "target", mtplug_run)
