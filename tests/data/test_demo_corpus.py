"""The demo's corpus: what is cleaned, and that nothing held out resembles training text."""

import importlib.util
import random
from pathlib import Path

import pytest

pytest.importorskip("polib")
SCRIPT = Path(__file__).parents[2] / "configs" / "demo_corpus.py"
spec = importlib.util.spec_from_file_location("demo_corpus", SCRIPT)
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)


@pytest.mark.parametrize(
    ("german", "english", "good"),
    [
        ("Die Datei ist leer.", "The file is empty.", True),
        ("Noch %s Tage übrig.", "%s days are left.", True),
        ("Noch %s Tage übrig.", "Some days are left.", False),
        ("Klick <b>hier</b> jetzt.", "Click <b>here</b> now.", False),
        ("OpenStreetMap Daten", "openstreetmap daten", False),
        ("Ja", "A very long explanation of what is meant by it", False),
        ("12 34 56 78", "12 34 56 79", False),
    ],
)
def test_what_counts_as_translated_text(german, english, good):
    assert demo.usable(german, english) is good


def test_accelerators_go_and_repetitions_count_once():
    pairs, counts = demo.clean(
        {"p": [("_Datei öffnen", "_Open the file"), ("Datei öffnen!", "Open the file!")]}
    )
    assert pairs == [("Datei öffnen", "Open the file")] and counts == {"p": 1}


def similarity(one, two):
    def grams(text):
        text = f" {demo.letters(text)} "
        return {text[i : i + 5] for i in range(max(len(text) - 4, 1))}

    a, b = grams(one), grams(two)
    return len(a & b) / len(a | b)


def test_nothing_held_out_resembles_training_text(monkeypatch):
    monkeypatch.setattr(demo, "HELD_OUT", 20)
    rng = random.Random(1)
    words = ["alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "theta"]
    pairs = list(
        {
            (" ".join(["Das", *rng.choices(words, k=6)]) + ".", " ".join(["This", *rng.choices(words, k=6)]) + ".")
            for _ in range(600)
        }
    )  # fmt: skip
    train, valid, test, dropped = demo.split(sorted(pairs))
    assert len(valid) == 20 and 0 < len(test) <= 20 and dropped > 0
    for side in (0, 1):
        for held in valid + test:
            assert max(similarity(held[side], t[side]) for t in train) <= demo.SIMILAR
        for held in test:
            assert max(similarity(held[side], v[side]) for v in valid) <= demo.SIMILAR
    assert demo.split(sorted(pairs)) == (train, valid, test, dropped)
