"""Probabilities against brute force in numpy's float64, and a run that is taught without training."""

import json
import shutil

import numpy as np
import pytest
import torch
from mtplug_knn.__main__ import main
from mtplug_knn.datastore import Datastore, fingerprint, write
from mtplug_knn.model import NearestNeighbours

import mtplug
from mtplug import testing
from mtplug.search import Ensemble
from mtplug.testing.material import MeanWords, Words, random_batch
from mtplug.testing.tiny import LEXICON

V = len(Words.words)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A datastore of random keys with the spread of a model's states: (folder, model, keys, values)."""
    rng = np.random.default_rng(1)
    model = MeanWords(seed=3).eval()
    keys = rng.normal(scale=0.4, size=(500, 12)).astype(np.float32)
    values = rng.integers(1, V, 500)
    folder = tmp_path_factory.mktemp("knn") / "store"
    blocks = ((keys[i : i + 77], values[i : i + 77]) for i in range(0, 500, 77))
    write(folder, blocks, 500, 12, {"fingerprint": fingerprint(model)})
    return folder, model, keys, values


def brute_force(queries, keys, values, k, temperature):
    """Equation 2, key by key."""
    rows = []
    for query in queries.astype(np.float64):
        distances = ((keys.astype(np.float64) - query) ** 2).sum(1)
        near = np.argsort(distances)[:k]
        weights = np.exp(-(distances[near] - distances[near[0]]) / temperature)
        row = np.zeros(V)
        np.add.at(row, values[near], weights / weights.sum())
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(
    ("k", "temperature", "weight"), [(1, 10, 0.5), (8, 0.3, 0.7), (64, 2, 0.2)]
)
def test_the_mixture_is_that_of_brute_force(made, k, temperature, weight):
    folder, model, keys, values = made
    mixed = NearestNeighbours(model, Datastore(folder), k, temperature, weight)
    batch = random_batch()
    with torch.no_grad():
        features = model(*batch.inputs)
        found = mixed.project(features).double().exp().flatten(0, 1).numpy()
        own = model.project(features).double().softmax(-1).flatten(0, 1).numpy()
    near = brute_force(features.flatten(0, 1).numpy(), keys, values, k, temperature)
    np.testing.assert_allclose(found, weight * near + (1 - weight) * own, rtol=1e-4, atol=1e-6)


def decodes_step_by_step(mixed):
    batch = random_batch()
    with torch.no_grad():
        whole = mixed.project(mixed(*batch.inputs))
        state = mixed.start(batch.source_tokens, batch.source_lengths)
        for t in range(batch.target_tokens.shape[1]):
            step = mixed.step(state, batch.prev_output_tokens[:, t : t + 1])[:, 0]
            real = batch.target_tokens[:, t] != 0
            torch.testing.assert_close(step[real], whole[real, t])


def test_decoding_step_by_step_has_the_same_mixture(made):
    folder, model, *_ = made
    decodes_step_by_step(NearestNeighbours(model, Datastore(folder), 8, 0.5, 0.5))


def test_fewer_keys_than_neighbours_and_an_approximate_index(made, tmp_path):
    _, model, keys, values = made
    write(tmp_path / "few", [(keys[:3], values[:3])], 3, 12, {})
    few = NearestNeighbours(model, Datastore(tmp_path / "few"), 8, 1.0, 0.5)
    p = few.neighbours(torch.from_numpy(keys[:2]), V)
    np.testing.assert_allclose(p, brute_force(keys[:2], keys[:3], values[:3], 8, 1.0), atol=1e-6)
    write(tmp_path / "lists", [(keys, values)], 500, 12, {}, index="IVF4,Flat")
    distances, tokens = Datastore(tmp_path / "lists", probes=4).search(keys[:5], 1)
    assert tokens[:, 0].tolist() == values[:5].tolist() and np.allclose(distances, 0, atol=1e-5)
    with pytest.raises(mtplug.UserError, match="--index Wrong: no index of faiss"):
        write(tmp_path / "wrong", [], 3, 12, {}, index="Wrong")


def test_it_keeps_the_contract_of_search_strategies(made):
    """With neighbours: scores are compared with those of the model that it searches."""
    testing.check_search_strategy("knn", f"datastore={made[0]}", "knn_weight=0.3", "beam=3")


def test_a_run_writes_what_the_datastore_says(mtplug_run, tmp_path, capsys):
    """The words of the made-up language have other translations here."""
    words = list(LEXICON)
    moved = dict(zip(words, [*words[1:], words[0]], strict=True))  # each means the next one's
    lines = [f"{a} {b}" for a in words for b in words]
    (tmp_path / "new.xx").write_text("\n".join(lines) + "\n")
    targets = [" ".join(LEXICON[moved[w]] for w in line.split()) for line in lines]
    (tmp_path / "new.en").write_text("\n".join(targets) + "\n")
    corpus = f"data.train={{source: {tmp_path}/new.xx, target: {tmp_path}/new.en}}"
    command = [str(mtplug_run), str(tmp_path / "store"), corpus, "--device", "cpu"]
    assert main(command) == 0
    meta = json.loads((tmp_path / "store" / "datastore.json").read_text())
    assert meta["tokens"] == 300 and meta["pairs"] == 100  # two words and `</s>` each

    settings = ["search.name=knn", f"search.datastore={tmp_path / 'store'}", "search.neighbours=4"]
    plain = mtplug.load(mtplug_run, device="cpu").translate(lines)
    strong = [*settings, "search.knn_weight=0.95"]
    taught = mtplug.load(mtplug_run, device="cpu", overrides=strong)
    assert sum(a == b for a, b in zip(plain, targets, strict=True)) < 10
    assert sum(a == b for a, b in zip(taught.translate(lines), targets, strict=True)) > 70
    without = mtplug.load(mtplug_run, device="cpu", overrides=[*settings, "search.knn_weight=0"])
    assert without.translate(lines) == plain

    # In bf16 the weights are others; the datastore is still of this model.
    half = mtplug.load(mtplug_run, "best", "cpu", strong, precision="bf16")
    assert sum(a == b for a, b in zip(half.translate(lines), targets, strict=True)) > 70

    # Given translations are scored by the mixture; with a language model, its weighted scores are added.
    scored = taught.score(lines[:2], targets[:2])
    apart = mtplug.load(mtplug_run, device="cpu").score(lines[:2], targets[:2])
    assert all(a.score > b.score + 0.1 for a, b in zip(scored, apart, strict=True))
    (found,) = taught.nbest(lines[:1])
    assert found[0].score == pytest.approx(taught.score(lines[:1], [found[0].text])[0].score)
    fused = [*strong, f"search.language_model={mtplug_run}"]
    both = mtplug.load(mtplug_run, device="cpu", overrides=fused).score(lines[:1], targets[:1])[0]
    alone = mtplug.load(mtplug_run, device="cpu").score([""], targets[:1])[0]
    pairs = zip(scored[0].token_scores, alone.token_scores, strict=True)
    assert both.token_scores == pytest.approx([a + 0.2 * b for a, b in pairs], abs=1e-4)

    with pytest.raises(
        mtplug.UserError, match=r"search\.shortlist: NearestNeighbours has no output"
    ):
        taught.translate(lines[:1], shortlist=5)
    pair = mtplug.load(mtplug_run, "best,best", "cpu", settings)
    with pytest.raises(mtplug.UserError, match="make one of the same ensemble by --checkpoint"):
        pair.translate(lines[:1])

    file = tmp_path / "store" / "datastore.json"
    file.write_text(json.dumps({k: v for k, v in meta.items() if k != "fingerprint_bf16"}))
    early = mtplug.load(mtplug_run, "best", "cpu", strong, precision="bf16")
    with pytest.raises(mtplug.UserError, match="or translate with --precision fp32"):
        early.translate(lines[:1])

    # Made anew at the same place: this process went on with what had been there.
    shutil.rmtree(file.parent)
    known = [" ".join(LEXICON[word] for word in line.split()) for line in lines]
    (tmp_path / "new.en").write_text("\n".join(known) + "\n")
    assert main(command) == 0
    assert sum(a == b for a, b in zip(taught.translate(lines), known, strict=True)) > 70

    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_datastore_of_another_model_is_refused(made, mtplug_run):
    other = mtplug.load(
        mtplug_run, device="cpu", overrides=["search.name=knn", f"search.datastore={made[0]}"]
    )
    with pytest.raises(mtplug.UserError, match="made with other weights"):
        other.translate(["ka"])
    with pytest.raises(mtplug.UserError, match="holds no datastore"):
        other.translate(["ka"], datastore="nowhere")
    with pytest.raises(mtplug.UserError, match="no folder is given"):
        other.translate(["ka"], datastore="")


def test_models_that_keep_their_states_to_themselves_are_refused(made):
    class Own(MeanWords):
        def step(self, state, tokens):
            return super().step(state, tokens)

    with pytest.raises(mtplug.UserError, match="knn: Own has a step of its own"):
        NearestNeighbours(Own(), Datastore(made[0]), 8, 1.0, 0.5)


def test_an_ensemble_has_states_of_all_its_models(tmp_path):
    both = Ensemble([MeanWords(seed=3), MeanWords(seed=4, dim=8)]).eval()
    rng = np.random.default_rng(1)
    keys = rng.normal(scale=0.4, size=(50, 20)).astype(np.float32)
    write(tmp_path / "store", [(keys, rng.integers(1, V, 50))], 50, 20, {})
    decodes_step_by_step(NearestNeighbours(both, Datastore(tmp_path / "store"), 8, 0.5, 0.5))
