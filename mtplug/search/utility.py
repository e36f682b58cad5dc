"""chrF between all pairs of a set of texts, at once."""

from __future__ import annotations

from collections import Counter

import numpy as np

ORDER, BETA = 6, 2.0


def chrf_matrix(texts: list[str]) -> np.ndarray:
    """(U, U) chrF2, 0 to 100, of text i as hypothesis and text j as reference.

    Popović (2015) as sacreBLEU computes it for a sentence: character 1- to 6-grams without white space,
    precision and recall averaged over the orders that both sides have.
    """
    size = len(texts)
    precision, recall, orders = (np.zeros((size, size)) for _ in range(3))
    squeezed = ["".join(text.split()) for text in texts]
    for n in range(1, ORDER + 1):
        grams = [Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in squeezed]
        number = {g: i for i, g in enumerate(dict.fromkeys(g for c in grams for g in c))}
        table = np.zeros((size, len(number)), np.int32)
        for row, counter in zip(table, grams, strict=True):
            row[[number[g] for g in counter]] = list(counter.values())
        total = table.sum(1)
        matches = np.stack([np.minimum(row, table).sum(1) for row in table])
        both = (total[:, None] > 0) & (total[None] > 0)
        precision += np.where(both, matches / np.maximum(total, 1)[:, None], 0)
        recall += np.where(both, matches / np.maximum(total, 1)[None], 0)
        orders += both
    orders = np.maximum(orders, 1)
    precision, recall = precision / orders, recall / orders
    down = BETA**2 * precision + recall
    score = np.where(down > 0, (1 + BETA**2) * precision * recall / np.where(down > 0, down, 1), 0)
    return 100 * score
