"""Several adapters loaded at once: each text gets the answers that its adapter's own run gives."""

import io
import json
import shutil
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

import mtplug
from mtplug import testing
from mtplug.adapters import folder_of, with_adapters
from mtplug.cli import translate
from mtplug.data.tokenizers import EOS
from mtplug.errors import UserError
from mtplug.search.shortlist import FILE
from mtplug.search.wishes import Wishes

TEXTS = ["ka lo mi", "we so ti ra", "nu pe", "vu", "lo lo mi ra", "ka we"]
METHODS = {
    "lora": "{name: lora, targets: [embedding, self, ffn]}",
    "norms": "{name: select, targets: [norm, embedding]}",
    "prefix": "{name: prefix_tuning, length: 3}",
    "prompt": "{name: prompt_tuning, length: 3}",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return testing.train(tmp_path_factory.mktemp("switching"), updates=60, name="base")


@pytest.fixture(scope="module")
def runs(base):
    here = f"training.finetune_from={base}"
    return {
        name: testing.train(
            base.parent, here, f"peft={method}", "optimizer.lr=5e-2", updates=6, name=name
        )
        for name, method in METHODS.items()
    }


def scores(translator, **adapters):
    return [t.score for t in translator.score(TEXTS, ["one two"] * len(TEXTS), **adapters)]


def test_a_batch_that_mixes_adapters_gets_each_ones_own_answers(base, runs):
    mixed = mtplug.load(base, adapters=runs)
    names = ["prefix", "", "lora", "norms", "prompt", "lora"]
    alone = {name: scores(mtplug.load(run)) for name, run in {"": base, **runs}.items()}
    expected = [alone[name][i] for i, name in enumerate(names)]
    assert len({round(s[0], 4) for s in alone.values()}) == 5  # they do differ
    torch.testing.assert_close(torch.tensor(scores(mixed, adapters=names)), torch.tensor(expected))
    texts = {name: mtplug.load(run).translate(TEXTS) for name, run in {"": base, **runs}.items()}
    assert mixed.translate(TEXTS, adapters=names) == [texts[n][i] for i, n in enumerate(names)]
    # switching back and forth leaves nothing behind
    for name in ("lora", "", "norms", "lora"):
        assert scores(mixed, adapters=name) == pytest.approx(alone[name], abs=1e-5)


@pytest.mark.parametrize("wishes", [[], [Wishes("one")], [None] * (len(TEXTS) + 1)])
def test_as_many_wishes_as_texts_are_due(base, runs, wishes):
    """Fewer were an IndexError, more were not noticed."""
    for translator in (mtplug.load(base), mtplug.load(base, adapters={"a": runs["lora"]})):
        with pytest.raises(UserError, match=f"wishes: {len(wishes)} for {len(TEXTS)} texts"):
            translator.nbest(TEXTS, wishes=wishes)


def test_models_with_adapters_share_the_bases_weights(base, runs):
    model = mtplug.load(base).model
    views = {name: with_adapters(model, [folder_of(run)]) for name, run in runs.items()}
    own = {p.data_ptr() for p in model.parameters()}
    for name, view in views.items():
        fresh = [n for n, p in view.named_parameters() if p.data_ptr() not in own]
        trained = {p.numel() for p in view.parameters()}
        assert fresh and len(fresh) < len(trained) + 60
        if name != "norms":
            assert all("peft" in n for n in fresh)
    assert views["norms"].output.weight is views["norms"].decoder_embedding.weight


def test_an_adapter_runs_base_takes_further_ones(base, runs):
    switching = mtplug.load(runs["lora"], adapters={"norms": runs["norms"]})
    assert scores(switching) == pytest.approx(scores(mtplug.load(runs["lora"])), abs=1e-6)
    expected = scores(mtplug.load(runs["norms"]))
    assert scores(switching, adapters="norms") == pytest.approx(expected, abs=1e-6)


def test_stacked_adapters_stand_on_one_another(base, runs):
    both = mtplug.load(base, adapters={"both": f"{runs['prompt']},{runs['prefix']}"})
    model = both.adapters["both"]
    assert type(model).__name__ == "Transformer"
    parts = {n.split(".")[-1] for n, _ in model.named_parameters() if "peft" in n}
    assert parts == {"prompt", "keys", "values"}
    assert len({round(scores(both, adapters=n)[0], 5) for n in ("", "both")}) == 2


def test_an_adapters_texts_have_the_shortlist_of_its_run(base, runs, tmp_path):
    """They had that of the base, in which words that only the adapter learnt were missing."""
    own = mtplug.load(shutil.copytree(runs["prefix"], tmp_path / "own", symlinks=True))
    run = own.lexicon.args[1]
    made = own.lexicon()  # kept in the folder, where it is made to be another
    made.targets.copy_(made.targets.roll(1, 0))
    made.frequent.copy_(made.frequent.roll(3))
    save_file(vars(made), run / FILE)
    shutil.copytree(folder_of(run), tmp_path / "alone")  # of which no run's folder is known
    loaded = {"own": run, "other": runs["prefix"], "alone": tmp_path / "alone"}
    mixed = mtplug.load(base, adapters={**loaded, "both": f"{runs['prompt']},{run}"})
    given = mixed.nbest(TEXTS, shortlist=1, adapters="own")
    assert tokens(given) == tokens(mtplug.load(run).nbest(TEXTS, shortlist=1))
    assert tokens(given) != tokens(mixed.nbest(TEXTS, shortlist=1, adapters="other"))
    assert mixed.lexicons["alone"]() is mixed.lexicons["alone"]() is mixed.lexicon()
    some = made.targets[:, 0] != EOS
    best = mixed.lexicons["both"]().targets[:, 0]
    assert torch.equal(best[some], made.targets[some, 0])  # the last comes first


def tokens(found):
    return [[t.tokens for t in row] for row in found]


def test_no_adapter_can_be_asked_for_by_none(base, runs):
    """It was a TypeError."""
    switching = mtplug.load(base, adapters={"a": runs["lora"]})
    named = ["a", None, "", None, None, None]
    expected = [scores(mtplug.load(run))[i] for i, run in enumerate([runs["lora"], base, base])]
    assert scores(switching, adapters=named)[:3] == pytest.approx(expected, abs=1e-6)
    plain = mtplug.load(base).translate(TEXTS)
    assert switching.translate(TEXTS, adapters=None) == plain
    assert switching.translate(TEXTS[1:], adapters=[None] * (len(TEXTS) - 1)) == plain[1:]


def test_lines_of_json_name_their_adapters(base, runs, tmp_path, capsys, monkeypatch):
    lines = [
        {"source": TEXTS[0], "adapter": "a"},
        {"source": TEXTS[1]},
        {"source": TEXTS[2], "adapter": "c"},
        {"source": TEXTS[2], "adapter": None},
    ]
    (tmp_path / "in").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [str(base), "--adapter", f"a={runs['lora']}", "--input", str(tmp_path / "in"), "--input-format",
             "jsonl", "--output", str(tmp_path / "out")]  # fmt: skip
    assert translate.main(given) == 2
    assert "no adapter 'c' is loaded; known: a" in capsys.readouterr().err
    answers = (tmp_path / "out").read_text().split("\n")[:-1]
    plain = mtplug.load(base).translate(TEXTS)
    assert answers[0] == mtplug.load(runs["lora"]).translate(TEXTS)[0]
    assert answers[1:] == [plain[1], "", plain[2]]


def test_an_adapter_without_a_name_is_for_all_lines(base, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode())))
    out = tmp_path / "out"
    assert translate.main([str(base), "--adapter", str(runs["norms"]), "--output", str(out)]) == 0
    assert out.read_text().splitlines() == mtplug.load(runs["norms"]).translate(TEXTS)


@pytest.mark.parametrize(("adapters", "said"), [
    ({"a": "nowhere"}, "adapter nowhere does not exist"),
    ({"a": "BASE"}, "holds no adapter"),
])  # fmt: skip
def test_what_is_no_adapter_is_refused(base, adapters, said):
    adapters = {k: str(base) if v == "BASE" else v for k, v in adapters.items()}
    with pytest.raises(UserError, match=said):
        mtplug.load(base, adapters=adapters)


def test_an_unknown_name_and_another_base_are_refused(base, runs):
    with pytest.raises(UserError, match="no adapter 'loar' is loaded; did you mean 'lora'"):
        mtplug.load(base, adapters=runs).translate(TEXTS, adapters="loar")
    other = testing.train(base.parent, "seed=2", updates=2, name="other")
    with pytest.raises(UserError, match=f"was made on another base than {other}: fingerprint"):
        mtplug.load(other, adapters=runs)
    with pytest.raises(UserError, match="an ensemble or a backend takes none"):
        mtplug.load(base, "best,last", adapters=runs)


def test_loading_leaves_the_programs_random_numbers_alone(base, runs):
    before = torch.get_rng_state()
    mtplug.load(base, adapters={"x": runs["lora"]})
    assert torch.equal(torch.get_rng_state(), before)


def test_folders_with_commas(base, runs):
    moved = base.parent / "a, b"
    moved.mkdir()
    shutil.copytree(runs["lora"], moved / "run", symlinks=True)
    for path in (moved / "run", str(moved / "run")):
        assert "x" in mtplug.load(base, adapters={"x": path}).adapters


def test_threads_count_every_text_that_is_too_long(base, runs):
    translator = mtplug.load(base, overrides=["data.max_length=2"], adapters={"x": runs["lora"]})
    text = "ka lo mi nu pe"

    def work():
        for _ in range(10):
            translator.translate([text, text], adapters=["x", ""], beam=1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert translator.too_long == 80


def test_scored_sides_must_be_as_long(base, runs):
    translator = mtplug.load(base, adapters={"x": runs["lora"]})
    with pytest.raises(UserError, match=r"^1 sources and 2 translations of them"):
        translator.score(["ka"], ["one", "two"])
