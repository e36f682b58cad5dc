"""The distribution: packages, dependencies, console scripts and plugin entry points.

Ranges have floors and no ceilings. `constraints.txt` pins what development and CI use.
"""

from setuptools import find_packages, setup

BUILT_IN = {
    "adafactor": "mtplug.optim.adafactor",
    "adam": "mtplug.optim.adam",
    "bench_attention": "mtplug.bench.attention",
    "bench_train": "mtplug.bench.train",
    "attention": "mtplug.nn.backends",
    "cross_entropy": "mtplug.criteria.cross_entropy",
    "gettext": "mtplug.data.corpora.gettext",
    "language_modeling": "mtplug.tasks.language_modeling",
    "lion": "mtplug.optim.lion",
    "muon": "mtplug.optim.muon",
    "schedule_free": "mtplug.optim.schedule_free",
    "schedules_decay": "mtplug.optim.decay",
    "schedules_stages": "mtplug.optim.stages",
    "sgd": "mtplug.optim.sgd",
    "json_strings": "mtplug.data.corpora.json_strings",
    "metrics": "mtplug.evaluation.metrics",
    "positions": "mtplug.nn.positions",
    "relative_positions": "mtplug.nn.relative",
    "schedules": "mtplug.optim.schedules",
    "search": "mtplug.search.beam",
    "search_diverse": "mtplug.search.diverse",
    "search_rerank": "mtplug.search.rerank",
    "search_sampling": "mtplug.search.sampling",
    "search_stepwise": "mtplug.search.stepwise",
    "text": "mtplug.data.corpora.text",
    "tokenizers": "mtplug.data.tokenizers",
    "trackers": "mtplug.training.trackers",
    "transformer": "mtplug.architectures.transformer",
    "translation": "mtplug.tasks.translation",
}
COMMANDS = (
    "average",
    "bench",
    "evaluate",
    "inspect",
    "plugins",
    "preprocess",
    "score",
    "train",
    "translate",
)

setup(
    name="mtplug",
    version="0.1.0",
    description="A plugin-extensible toolkit for neural machine translation",
    python_requires=">=3.10",
    packages=[*find_packages(include=["mtplug", "mtplug.*"]), *find_packages("kernels")],
    package_dir={"mtplug_kernels": "kernels/mtplug_kernels"},
    package_data={"mtplug": ["templates/*.py", "templates/package/*", "evaluation/*.css"]},
    install_requires=[
        "torch>=2.8",
        "triton>=3.4; platform_system == 'Linux'",
        "numpy>=1.26",
        "packaging>=22",
        "pluggy>=1.5",
        "omegaconf>=2.3",
        "sentencepiece>=0.2",
        "sacrebleu>=2.4",
        "safetensors>=0.4",
        "rich>=13",
    ],
    extras_require={
        "plots": ["matplotlib>=3.8"],
        "moses": ["sacremoses>=0.1"],
        "gettext": ["polib>=1.2"],
        "schedulefree": ["schedulefree>=1.4"],
        "japanese": ["sacrebleu[ja]"],
        "dev": ["pytest>=8", "pytest-xdist>=3", "hypothesis>=6", "ruff>=0.6", "mypy>=1.10", "setuptools>=68", "wheel",
                "types-PyYAML", "matplotlib>=3.8", "sacremoses>=0.1", "polib>=1.2", "schedulefree>=1.4"],
    },
    entry_points={
        "console_scripts": [f"mtplug-{name} = mtplug.cli.{name}:main" for name in COMMANDS],
        "mtplug": [f"{name} = {module}" for name, module in BUILT_IN.items()],
        "pytest11": ["mtplug = mtplug.testing.fixtures"],
    },
)  # fmt: skip
