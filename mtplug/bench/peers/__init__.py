"""Other toolkits, each in an environment of its own, for suites that measure beside them.

A suite prepares an environment (`environment.py`), starts a worker in it (`process.py`) and asks the worker for one
round at a time, so that all sides take turns on one machine. What runs in there is under `scripts/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mtplug.errors import UserError

SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Peer:
    """A toolkit to measure beside.

    Attributes:
        distribution: its name and version as pip takes them, installed without what it asks for: old
            pins would bring another torch.
        needs: what it needs for this work, installed with all that it asks for in turn.
        script: what its worker runs.
    """

    name: str
    distribution: str
    needs: tuple[str, ...]
    script: Path


PEERS = [
    Peer(
        "joeynmt",
        "joeynmt==2.3.0",
        ("importlib_metadata", "matplotlib", "numpy", "packaging", "pillow", "pyyaml", "sacrebleu",
         "sacremoses", "sentencepiece", "subword-nmt", "tensorboard"),
        SCRIPTS / "joeynmt_peer.py",
    ),
    Peer(
        "opennmt-py",
        "OpenNMT-py==3.5.1",
        ("configargparse", "ctranslate2>=4", "pyahocorasick", "pyonmttok>=1.37,<2", "pyyaml",
         "rapidfuzz", "sacrebleu", "six", "tensorboard"),
        SCRIPTS / "opennmt_peer.py",
    ),
    Peer(
        "eole",
        "eole==0.6.4",
        ("configargparse", "ctranslate2>=4", "numpy>=2", "pyahocorasick", "pydantic",
         "pyonmttok>=1.38.1,<2", "pyyaml", "rapidfuzz", "sacrebleu", "safetensors", "six",
         "tensorboard", "torch-optimi"),
        SCRIPTS / "eole_peer.py",
    ),
    Peer(
        "fairseq",
        "fairseq==0.12.2",
        ("bitarray", "cffi", "cython", "hydra-core==1.0.7", "numpy", "omegaconf==2.0.6", "regex",
         "sacrebleu", "safetensors", "tqdm"),
        SCRIPTS / "fairseq_peer.py",
    ),
    Peer("transformers", "transformers==5.24.0", ("transformers==5.24.0",), SCRIPTS / "marian_peer.py"),
]  # fmt: skip


def chosen(names: list[str]) -> list[Peer]:
    """The peers of these names; `all` stands for every one.

    Raises:
        UserError: there is no such peer.
    """
    known = {peer.name: peer for peer in PEERS}
    for name in names:
        if name != "all" and name not in known:
            raise UserError(f"peers: '{name}' is none of all, {', '.join(known)}")
    return list(PEERS) if "all" in names else [known[name] for name in names]
