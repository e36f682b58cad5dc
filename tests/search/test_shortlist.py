"""Shortlists: the lexicon against the definition of IBM Model 1, and what a search makes of it."""

import shutil
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

import mtplug
from mtplug import testing
from mtplug.architectures import Transformer
from mtplug.cli.peft import main as peft_command
from mtplug.config.build import component_from_overrides
from mtplug.data.tokenizers import EOS
from mtplug.errors import UserError
from mtplug.peft.base import UnfusedOutput, become
from mtplug.search import BeamConfig, BeamSearch, Ensemble
from mtplug.search.base import Request
from mtplug.search.shortlist import FILE, MOST, Lexicon, Shortlisted, learn
from mtplug.search.wishes import Wishes
from mtplug.testing.material import TINY_TRANSFORMER, WordsTask

PAIRS = [
    ([3, 4], [3, 4, 5]),
    ([3, 5], [3, 6]),
    ([4, 5, 4], [5, 6, 5, 5]),
    ([3], [3]),
    ([6, 5], [7, 6]),
]


def model_1(pairs, iterations):
    """t(f | e) with loops and dictionaries, as Brown et al. (1993) write it, each token once a sentence."""
    t = defaultdict(lambda: 1.0)
    for _ in range(iterations):
        counts, totals = defaultdict(float), defaultdict(float)
        for source, target in pairs:
            for f in set(target):
                whole = sum(t[f, e] for e in set(source))
                for e in set(source):
                    counts[f, e] += t[f, e] / whole
                    totals[e] += t[f, e] / whole
        t = {(f, e): c / totals[e] for (f, e), c in counts.items()}
    return t


@pytest.mark.parametrize("iterations", [1, 5])
def test_lexicon_orders_targets_as_model_1_does(iterations):
    lexicon = learn(PAIRS, 8, 9, iterations)
    expected = model_1(PAIRS, iterations)
    assert lexicon.targets.shape == (8, MOST)
    for e in range(8):
        wanted = sorted((-p, f) for (f, x), p in expected.items() if x == e)
        found = lexicon.targets[e].tolist()
        assert set(found[len(wanted) :]) == {EOS}
        probabilities = [expected[f, e] for f in found[: len(wanted)]]
        assert probabilities == pytest.approx([-p for p, _ in wanted])
    # of the five translations 3 and 6 are in three, 5 in two, 4 and 7 in one
    assert lexicon.frequent.tolist() == [3, 6, 5, 4, 7, 0, 1, 2, 8]


def test_candidates_hold_lexicon_frequent_and_requested_tokens():
    lexicon = learn(PAIRS, 8, 9)
    ids = lexicon.candidates(torch.tensor([[6, EOS]]), 1, [Request([8], [[[4]]], [])])
    best = int(lexicon.targets[6, 0])
    assert ids.tolist() == sorted({0, 1, 2, best, int(lexicon.frequent[0]), 8, 4})


def test_a_forbidden_phrase_that_a_shortlist_cannot_spell_is_left_out():
    model = SimpleNamespace(candidates=torch.tensor([0, 1, 2, 5, 7]))
    inside = torch.arange(10) == 7
    given = Request([5], [], [[5, 6], [7, 5], [9]], inside, closed=True)
    found = Shortlisted.request(model, given)
    assert (found.prefix, found.forbidden, found.closed) == ([3], [[4, 3]], True)
    assert found.word_inside.tolist() == [False, False, False, False, True]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return testing.train(tmp_path_factory.mktemp("shortlist"), updates=60)


def test_shortlist_of_everything_changes_nothing_and_a_short_one_leaves_tokens_out(run):
    translator = mtplug.load(run)
    texts = [source for source, _ in testing.pairs(20, seed=9)]
    whole = translator.nbest(texts)
    assert not (run / FILE).exists()
    every = translator.nbest(texts, shortlist=23)  # the size of the vocabulary
    assert (run / FILE).is_file()
    for one, other in zip(whole, every, strict=True):
        assert [t.tokens for t in one] == [t.tokens for t in other]
        assert [t.score for t in one] == pytest.approx([t.score for t in other], abs=1e-5)
    wishes = [Wishes(prefix="one", forbidden=["two", "three"], required=[["ten"]])] * 3
    for options in ({"wishes": wishes}, {"coverage_penalty": 0.2}):
        one, other = (translator.nbest(texts[:3], shortlist=n, nbest=3, **options) for n in (0, 23))
        assert [[t.tokens for t in row] for row in one] == [
            [t.tokens for t in row] for row in other
        ]
    lexicon = translator.lexicon()
    source = translator.task.source_tokenizer.encode(texts[:1])[0]
    allowed = set(lexicon.candidates(torch.tensor([source]), 1, None).tolist())
    (best,) = translator.nbest(texts[:1], shortlist=1)
    written = set(translator.task.target_tokenizer.encode([best[0].text])[0])
    assert len(allowed) < 23 and written <= allowed
    # what is required is scored although the lexicon does not know it
    (found,) = translator.nbest(["ka"], wishes=[Wishes(required=[["ten"]])], shortlist=1)
    assert "ten" in found[0].text and not found[0].unmet


def test_strategies_and_models_that_go_with_no_shortlist_are_refused(run):
    """A strategy for models of its own failed somewhere inside; ids that it knew were not those of the shortlist."""

    class OwnModels(BeamSearch):
        @staticmethod
        def why_not(config, model):
            return "" if isinstance(model, Transformer) else "it is for transformers"

    class OtherModel(BeamSearch):
        def searched_model(self, model, task):
            return Ensemble([model])

    translator, config = mtplug.load(run), BeamConfig()
    translator.search = OwnModels(config)
    assert translator.translate(["ka"])
    said = (
        r"search\.shortlist: OwnModels cannot search with one: it is for transformers; set it to 0"
    )
    with pytest.raises(UserError, match=said):
        translator.translate(["ka"], shortlist=5)
    translator.search = OtherModel(config)
    said = r"search\.shortlist: Ensemble has no output weights to choose from; set it to 0"
    with pytest.raises(UserError, match=said):
        translator.translate(["ka"], shortlist=5)


def test_an_adapter_that_changes_the_output_is_to_be_merged_first(run):
    translator = mtplug.load(run)
    become(translator.model, UnfusedOutput)
    with pytest.raises(
        UserError, match=r"search\.shortlist: the adapter changes the output; merge"
    ):
        translator.translate(["ka"], shortlist=5)


def test_a_bias_of_the_logits_goes_with_the_tokens():
    """Marian's models have one, and had no shortlist."""
    torch.manual_seed(1)
    build = component_from_overrides("architectures", "marian", [*TINY_TRANSFORMER]).build
    model, candidates, features = (
        build(WordsTask()),
        torch.tensor([0, 1, 2, 5, 7]),
        torch.randn(3, 16),
    )
    torch.nn.init.normal_(model.output_bias)
    logits = Shortlisted(model, candidates).project(features)
    torch.testing.assert_close(logits, model.project(features)[:, candidates])
    assert (logits - features @ model.output.weight[candidates].T).abs().min() > 0.01

    lora = component_from_overrides("peft_methods", "lora", ["targets=[output]"]).build()
    with pytest.raises(UserError, match=r"the adapter changes the output; merge"):
        Shortlisted(lora.apply(model), candidates)


def test_lexicon_says_what_it_lacks(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / FILE).write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged"):
        mtplug.load(copy).translate(["ka lo"], shortlist=5)
    (copy / FILE).unlink()
    with pytest.raises(
        UserError, match=r"search\.shortlist: it is learnt from the training data once, but"
    ):
        mtplug.load(copy, overrides=["data.root=/nowhere"]).translate(["ka lo"], shortlist=5)
    with pytest.raises(UserError, match=r"search\.shortlist: the run has no training pairs to"):
        mtplug.load(copy, overrides=["data.train=[]"]).translate(["ka lo"], shortlist=5)


def test_a_lexicon_of_another_vocabulary_of_the_same_size_is_told(run, tmp_path):
    """One that a training left which was begun anew, or that was copied from another run, chose wrong tokens."""
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    other = mtplug.load(copy)
    pieces = list(range(len(other.task.target_tokenizer)))
    other.task.target_tokenizer.tokens = lambda ids: [str(pieces[-1 - i]) for i in ids]
    (copy / FILE).unlink(missing_ok=True)
    other.translate(["ka lo"], shortlist=5)
    with pytest.raises(UserError, match=r"damaged \(it does not fit the vocabularies\); remove it"):
        mtplug.load(copy).translate(["ka lo"], shortlist=5)


@pytest.mark.parametrize("peft", [(), ("peft.name=bitfit",)])
def test_a_fine_tuned_run_has_the_words_of_its_base(run, tmp_path, peft):
    """Its lexicon was that of its own few sentences, and other text was translated with hardly any words."""
    (tmp_path / "few.xx").write_text("ka\n")
    (tmp_path / "few.en").write_text("one\n")
    own = f"data.train=[{{source: {tmp_path}/few.xx, target: {tmp_path}/few.en}}]"
    base = f"training.finetune_from={run}"
    tuned = testing.train(tmp_path, base, own, *peft, "training.max_updates=2", name="tuned")
    found, of_base = mtplug.load(tuned).lexicon(), mtplug.load(run).lexicon()
    for row, best in zip(
        found.targets[:, :2].tolist(), of_base.targets[:, 0].tolist(), strict=True
    ):
        assert best in row
    # Taken once, they stay without the base, like all that a run needs.
    assert torch.equal(mtplug.load(tuned).lexicon().targets, found.targets)
    if peft:  # a merged run names no base, but the adapter
        merged = tmp_path / "merged"
        assert peft_command(["merge", str(tuned), "--output", str(merged)]) == 0
        found = mtplug.load(merged).lexicon()
        for row, best in zip(
            found.targets[:, :3].tolist(), of_base.targets[:, 0].tolist(), strict=True
        ):
            assert best in row


def test_a_full_disk_serves_too(run, tmp_path, monkeypatch):
    """safetensors has an error of its own for it, which ended the translation."""

    def full(*args):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    (copy / FILE).unlink(missing_ok=True)
    monkeypatch.setattr("mtplug.search.shortlist.save_tensors", full)
    assert mtplug.load(copy).translate(["ka lo"], shortlist=5)


def test_two_lexicons_take_turns():
    one = Lexicon(torch.tensor([[3, 4, 5], [6, EOS, EOS]]), torch.tensor([7, 8]))
    other = Lexicon(torch.tensor([[3, 8, 9], [EOS] * 3]), torch.tensor([9, 7, 6]))
    both = one.with_base(other)
    assert both.targets.tolist() == [[3, 4, 8], [6, EOS, EOS]]
    assert both.frequent.tolist() == [7, 9, 8]


def test_of_many_sentences_some_from_everywhere_are_taken(monkeypatch):
    """Only the first were, so that a second corpus was not in the lexicon."""
    monkeypatch.setattr("mtplug.search.shortlist.LINKS", 10)
    lexicon = learn([([3], [4])] * 50 + [([5], [6])] * 50, 8, 9)
    assert lexicon.targets[[3, 5], 0].tolist() == [4, 6]


def test_bf16_weights_give_nearly_the_same_scores(run):
    texts = [source for source, _ in testing.pairs(20, seed=9)]
    exact, half = mtplug.load(run), mtplug.load(run, precision="bf16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    targets = exact.translate(texts)
    for a, b in zip(exact.score(texts, targets), half.score(texts, targets), strict=True):
        assert b.score == pytest.approx(a.score, abs=0.05)
    same = sum(a == b for a, b in zip(targets, half.translate(texts), strict=True))
    assert same >= 15


@pytest.mark.parametrize("harm", [
    lambda t: t["targets"].fill_(10**6),
    lambda t: t["frequent"].fill_(-1),
    lambda t: t.update(targets=t["targets"][:3].clone()),
    lambda t: t.update(targets=t["targets"][0].clone()),
    lambda t: t.update(frequent=t["frequent"][None].clone()),
    lambda t: t.update(more=t["frequent"].clone()),
    lambda t: t.pop("frequent"),
])  # fmt: skip
def test_a_lexicon_of_other_vocabularies_is_told(run, tmp_path, harm):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    mtplug.load(copy).translate(["ka lo"], shortlist=5)
    tensors = load_file(copy / FILE)
    harm(tensors)
    save_file(tensors, copy / FILE)
    with pytest.raises(UserError, match=r"damaged \(it does not fit the vocabularies\); remove it"):
        mtplug.load(copy).translate(["ka lo"], shortlist=5)
