"""Scores of labels against published numbers."""

import pytest

from mtplug.config.build import component_from_overrides
from mtplug.evaluation.labels import spans


def score(name, hypotheses, *references):
    return (
        component_from_overrides("metrics", name, [])
        .build("")
        .score(hypotheses, list(references))
        .value
    )


def test_span_f1_and_accuracy_of_the_example_of_seqeval():
    """README of seqeval 1.2: F1 0.50, accuracy 0.80."""
    wanted = ["O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O"]
    found = ["O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O"]
    assert score("span_f1", found, wanted) == pytest.approx(50)
    assert score("accuracy", found, wanted) == pytest.approx(80)


def test_macro_f1_of_the_example_of_scikit_learn():
    """Documentation of sklearn.metrics.f1_score: macro 0.2666…, micro (which is accuracy) 0.333…"""
    wanted, found = list("012012"), list("021001")
    assert score("macro_f1", found, wanted) == pytest.approx(100 * 0.26666666)
    assert score("accuracy", found, wanted) == pytest.approx(100 / 3)


def test_spans_begin_and_end_where_conll_says():
    labels = ["I-A", "I-A", "B-A", "I-B", "O", "B-B", "B-B", "I-A"]
    assert spans(labels) == [
        ("A", (0, 2)), ("A", (2, 3)), ("B", (3, 4)), ("B", (5, 6)), ("B", (6, 7)), ("A", (7, 8)),
    ]  # fmt: skip
    assert spans(["B", "I", "O"]) == [("", (0, 2))]
    assert spans(["NOUN", "O", "I-A"]) == [("NOUN", (0, 1)), ("A", (2, 3))]


def test_missing_and_additional_labels_are_wrong():
    assert score("accuracy", ["a"], ["a b"]) == 50
    assert score("accuracy", ["a b"], ["a"]) == 50
    assert score("span_f1", [""], ["B-A"]) == 0 and score("macro_f1", [""], ["a"]) == 0


def test_nearest_reference_counts():
    assert score("accuracy", ["a b", "c d"], ["x b", "c d"], ["a b", "x x"]) == 100
    assert score("span_f1", ["B-A O"], ["O B-A"], ["B-A O"]) == 100
