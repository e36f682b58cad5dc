"""Real distributions with one plugin each, pip-installed into an environment of their own."""

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

SETUP = """\
from setuptools import setup
setup(name="{dist}", version="{version}", py_modules=["{module}"],
      install_requires={requires!r},
      entry_points={{"mtplug": ["{name} = {module}"]}})
"""
HEAD = "from dataclasses import dataclass\nimport mtplug\n"
SCHEDULE = """
@dataclass
class Config:
    '''One line about {name}.'''
    peak: int = 7
    '''where it is highest'''

@mtplug.hookimpl
def register_lr_schedulers(register):
    register("{name}", lambda config, max_updates: (lambda update: config.peak), Config)
"""


def install(
    folder: Path, distributions: dict[str, tuple], requires: dict[str, list[str]] | None = None
) -> Path:
    """The Python of a new environment below `folder`, with mtplug and with `distributions`.

    Args:
        folder: where it goes.
        distributions: entry point and module's text by name; version 1.5 each.
        requires: what each declares that it needs, by name.
    """
    environment = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({p!r})" for p in site.getsitepackages()]
    (packages / "outer.pth").write_text("\n".join(lines) + "\n")
    sources = []
    for dist, (name, text) in distributions.items():
        source = folder / dist
        source.mkdir()
        module = dist.replace("-", "_")
        (source / f"{module}.py").write_text(text)
        needs = (requires or {}).get(dist, [])
        (source / "setup.py").write_text(
            SETUP.format(dist=dist, version="1.5", module=module, name=name, requires=needs)
        )
        sources.append(str(source))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--no-build-isolation", "--target", str(packages), *sources],
        check=True, capture_output=True,
    )  # fmt: skip
    return environment / "bin" / "python"


SHARED = """\
from pathlib import Path
import pytest
@pytest.fixture(scope="session")
def mtplug_run():
    return Path({run!r})
"""


def install_and_test(package: Path, target: Path, run: Path | None = None) -> str:
    """Install a package below `target` and run its own tests.

    Args:
        package: its folder.
        target: where it goes.
        run: what the fixture `mtplug_run` gives its tests, which otherwise train one.

    Returns:
        What pytest printed; every test passed.
    """
    source = (
        target.parent / f"source-{package.name}"
    )  # so that building leaves nothing in the package
    shutil.copytree(package, source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--no-build-isolation", "--target", str(target), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    if run:
        assert not (source / "conftest.py").exists()
        (source / "conftest.py").write_text(SHARED.format(run=str(run)))
    env = {**os.environ, "PYTHONPATH": str(target)}
    env.pop("MTPLUG_PLUGIN_FILES", None)
    tests = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*tests, "--rootdir", str(source), str(source / "tests")],
        capture_output=True, text=True, env=env, cwd=source,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(python, *args, blocked="", cache=None):
    """Run it with `args` and wait."""
    env = {**os.environ, "MTPLUG_BLOCK": blocked}
    if cache:
        env["XDG_CACHE_HOME"] = str(cache)
    return subprocess.run([str(python), *map(str, args)], capture_output=True, text=True, env=env)
