"""Hugging Face's Marian format against `transformers` itself: the same translations out, the same logits in."""

import io
import json

import pytest
import sentencepiece
import torch

import mtplug
from mtplug import testing
from mtplug.cli import export, import_run
from mtplug.config.build import component_from_overrides
from mtplug.data.tokenizers import EOS, PAD
from mtplug.exporting.marian import MarianExporter, MarianFormat
from mtplug.exporting.marian_model import MarianTokenizer
from mtplug.testing.material import TINY_TRANSFORMER, Words, WordsTask
from mtplug.translator import Translator

TEXTS = [source for source, _ in testing.pairs(20, seed=7)]
SETTINGS = {
    "all": ("tokenizer.joint=true", "tokenizer.vocab_size=23"),
    "decoder": ("tokenizer.joint=false", "tokenizer.vocab_size=13"),
    "none": ("tokenizer.joint=false", "tokenizer.vocab_size=13"),
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=SETTINGS)
def run(request, tmp_path_factory):
    """A post-norm run with each way of tying tables; it has learnt enough to prefer some words."""
    tie = f"architecture.tie_embeddings={request.param}"
    settings = ("architecture.norm=post", tie, "data.test=null", "validation.translate=false", "validation.best_metric=loss",
                "logging.trackers=[{name: jsonl}]", "lr_scheduler.name=cosine", "search.length_penalty=0.8", *SETTINGS[request.param])  # fmt: skip
    return testing.train(tmp_path_factory.mktemp("marian"), *settings, updates=60)


def test_transformers_gives_the_translations_of_what_was_exported(run, transformers, tmp_path):
    out = tmp_path / "out"
    arguments = [str(run), "--format", "marian", "--output", str(out), "--checkpoint", "last"]
    assert export.main([*arguments, "--debug"]) == 0
    model = transformers.MarianMTModel.from_pretrained(out).eval()
    tokenizer = transformers.MarianTokenizer.from_pretrained(out)
    ours = mtplug.load(run, "last", device="cpu")
    told, search = model.generation_config, ours.search.config
    assert (told.num_beams, told.length_penalty) == (search.beam, search.length_penalty)
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    ids = ours.task.source_tokenizer.encode(TEXTS)
    assert [row[: len(i)].tolist() for row, i in zip(inputs["input_ids"], ids, strict=True)] == ids
    for beam in (1, 4):
        found = model.generate(
            **inputs,
            num_beams=beam,
            max_length=30,
            output_scores=True,
            return_dict_in_generate=True,
        )
        wanted = ours.nbest(TEXTS, beam=beam, max_ratio=0, max_extra=29)
        written = [[i for i in row if i > 1] for row in found.sequences.tolist()]
        same = [ids == best[0].parts[0] for ids, best in zip(written, wanted, strict=True)]
        texts = tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
        for text, best, equal in zip(texts, wanted, same, strict=True):
            assert not equal or "<unk>" in best[0].tokens or text == best[0].text
        # At a limit transformers counts `</s>` as certain, so another translation may be the best there.
        ended = [best[0].finished and len(i) < 28 for i, best in zip(written, wanted, strict=True)]
        assert sum(ended) > len(TEXTS) / 2
        others = [e and not equal for e, equal in zip(ended, same, strict=True)]
        assert sum(others) <= 1, beam  # a tie may fall either way
        if beam > 1:
            scores = found.sequences_scores.tolist()
            for score, best, e, equal in zip(scores, wanted, ended, same, strict=True):
                assert not (e and equal) or score == pytest.approx(best[0].score, abs=1e-4)

    # and back: the run made of the export translates as the first one did
    back = tmp_path / "back"
    assert import_run.main(["marian", str(out), "--output", str(back), "--debug"]) == 0
    options = {"max_ratio": 0, "max_extra": 29, "length_penalty": search.length_penalty}
    again = mtplug.load(back, device="cpu").nbest(TEXTS, beam=4, **options)
    assert [row[0].parts for row in again] == [row[0].parts for row in wanted]


def random_marian(transformers, folder, **settings):
    """A random model in the layout of OPUS-MT: `</s>` first, padding last, decoding begins with zeros."""
    spoken = testing.pairs(300, seed=1)
    pieces = {"</s>": 0, "<unk>": 1}
    for side, name in enumerate(("source", "target")):
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([pair[side] for pair in spoken]), model_writer=written,
            vocab_size=24, minloglevel=2, num_threads=1,
        )  # fmt: skip
        (folder / f"{name}.spm").write_bytes(written.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
        for i in range(processor.get_piece_size()):
            if not (processor.is_control(i) or processor.is_unknown(i)):
                pieces.setdefault(processor.id_to_piece(i), len(pieces))
    pieces["<pad>"] = len(pieces)
    (folder / "vocab.json").write_text(json.dumps(pieces))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"source_lang": "xx", "target_lang": "en", "tokenizer_class": "MarianTokenizer"})
    )
    pad = pieces["<pad>"]
    config = transformers.MarianConfig(
        vocab_size=len(pieces), d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
        max_position_embeddings=128, dropout=0.3, scale_embedding=True, activation_function="swish",
        pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=0,
        **settings,
    )  # fmt: skip
    torch.manual_seed(5)
    model = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "embed_positions" not in name:
                tensor.normal_(std=0.3)
        for table in (model.get_input_embeddings(), model.get_decoder().embed_tokens):
            table.weight[pad] = 0
        model.final_logits_bias.normal_(std=0.5)
    return model


@pytest.mark.parametrize("settings", [{}, {"share_encoder_decoder_embeddings": False}], ids=str)
def test_imported_model_has_the_logits_of_the_original(settings, transformers, tmp_path):
    source = tmp_path / "opus"
    source.mkdir()
    model = random_marian(transformers, source, **settings)
    model.save_pretrained(source)
    assert (
        import_run.main(["marian", str(source), "--output", str(tmp_path / "run"), "--debug"]) == 0
    )
    ours = mtplug.load(tmp_path / "run", device="cpu")
    assert ours.model.config.dropout == 0.3
    tokenizer = transformers.MarianTokenizer.from_pretrained(source)

    texts, targets = ["ka lo mi", "zzz ti"], ["one two three four", "ten"]
    inputs = tokenizer(texts, text_target=targets, return_tensors="pt", padding=True)
    labels, pad = inputs["labels"], model.config.pad_token_id
    start = torch.full((2, 1), pad)
    with torch.no_grad():
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
            decoder_input_ids=torch.cat([start, labels[:, :-1].clamp(min=0)], 1),
        ).logits  # fmt: skip
    truth = logits.log_softmax(-1)
    for row, scored in enumerate(ours.score(texts, targets)):
        wanted = [
            truth[row, t, i].item() for t, i in enumerate(labels[row]) if i not in (pad, -100)
        ]
        assert scored.token_scores == pytest.approx(wanted, abs=1e-4)

    found = model.generate(**tokenizer(TEXTS, return_tensors="pt", padding=True), num_beams=3,
                           max_length=12, early_stopping=True, bad_words_ids=[[pad]])  # fmt: skip
    written = tokenizer.batch_decode(found, skip_special_tokens=True)
    known = [b for b in ours.nbest(TEXTS, beam=3, max_ratio=0, max_extra=11) if b[0].finished]
    same = sum(b[0].text in written for b in known)
    assert same >= len(known) - 1


@pytest.mark.parametrize("tied", ["all", "decoder", "none"])
def test_an_imported_model_goes_back_as_it_was_and_as_it_was_fine_tuned(
    tied, transformers, tmp_path
):
    source, run, out = (tmp_path / name for name in ("opus", "run", "out"))
    source.mkdir()
    settings = {"tie_word_embeddings": tied != "none"}
    if tied != "all":
        settings["share_encoder_decoder_embeddings"] = False
    original = random_marian(transformers, source, **settings)
    original.save_pretrained(source)
    assert import_run.main(["marian", str(source), "--output", str(run), "--debug"]) == 0
    assert export.main([str(run), "--format", "marian", "--output", str(out), "--debug"]) == 0
    again = transformers.MarianMTModel.from_pretrained(out).eval()
    known = [transformers.MarianTokenizer.from_pretrained(folder) for folder in (source, out)]
    lines = ["ka lo mi", "nu zzz ti"]
    logits = [
        _logits(model, tokenizer, lines)
        for model, tokenizer in zip((original, again), known, strict=True)
    ]
    vocabularies = [tokenizer.get_vocab() for tokenizer in known]
    same = {vocabularies[0][piece]: i for piece, i in vocabularies[1].items()}
    moved = logits[1][..., [same[i] for i in range(len(same))]]
    torch.testing.assert_close(moved, logits[0], atol=1e-5, rtol=1e-5)

    pairs = testing.pairs(60, seed=3)
    tuned, _ = testing.finetune(run, tmp_path / "tuned", pairs, "optimizer.lr=0.02")
    folder = tmp_path / "tuned-out"
    assert export.main([str(tuned), "--format", "marian", "--output", str(folder), "--debug"]) == 0
    model = transformers.MarianMTModel.from_pretrained(folder).eval()
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    ours = mtplug.load(tuned, device="cpu")
    # What decoding begins with and padding's row, which are one there, have parted.
    assert not torch.equal(ours.model.start_embedding, ours.model.decoder_embedding.weight[0])
    for text, target in pairs[:3]:
        given = tokenizer(text, text_target=target, return_tensors="pt")
        start = torch.tensor([[model.config.decoder_start_token_id]])
        (source_ids,), (target_ids,) = (
            t.encode([x])
            for t, x in ((ours.task.source_tokenizer, text), (ours.task.target_tokenizer, target))
        )
        lengths = torch.tensor([len(source_ids) + 1])
        with torch.no_grad():
            theirs = model(
                given["input_ids"],
                decoder_input_ids=torch.cat([start, given["labels"][:, :-1]], 1),
            ).logits
            features = ours.model(
                torch.tensor([[*source_ids, EOS]]), lengths, torch.tensor([[EOS, *target_ids]])
            )
            logits = ours.model.project(features)
        if tied != "none":  # padding's logit, which is never right
            assert (theirs[..., PAD] < -1000).all()
            logits[..., PAD] = theirs[..., PAD]
        torch.testing.assert_close(theirs, logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def _logits(model, tokenizer, lines):
    inputs = tokenizer(lines, return_tensors="pt", padding=True)
    start = torch.full((len(lines), 1), model.config.decoder_start_token_id)
    return model(**inputs, decoder_input_ids=start).logits


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_its_tokenizer_samples_subwords(tmp_path, kind):
    """tokenizer.sampling was ignored. What is drawn for a seed is what SentencePiece's own tokenizer draws."""
    texts = [text for pair in testing.pairs(300, seed=1) for text in pair]
    settings = [f"model_type={kind}", "vocab_size=40", "sampling=0.3"]
    made, plain = (
        component_from_overrides("tokenizers", name, settings).build().train(texts, "joint")
        for name in ("marian", "sentencepiece")
    )
    seeds = list(range(len(texts)))
    drawn = made.sample(texts, seeds)
    assert made.samples and drawn == plain.sample(texts, seeds) != made.encode(texts)
    assert made.decode(drawn) == texts
    # with ids of its own, and a language code
    pieces = ["<pad>", "</s>", "<unk>", ">>de<<", *made.tokens(range(len(made) - 1, 2, -1))]
    made = MarianTokenizer(made.model, pieces, 0.3)
    assert made.sample([">>de<< ka lo", "ka lo"], [5, 5])[0] == [3, *made.sample(["ka lo"], [5])[0]]
    made.save(tmp_path, "source")
    factory = component_from_overrides("tokenizers", "marian", settings).build()
    assert factory.load(tmp_path, "source").sample(["ka lo"], [5]) == made.sample(["ka lo"], [5])


def test_what_marian_lacks_is_refused(tmp_path, capsys):
    task = WordsTask()
    for setting, said in (
        ("norm=pre", "post-norm"),
        ("norm_type=rms", "layer normalisation only"),
        ("activation=swiglu", "no activation swiglu"),
        ("kv_heads=1", "heads share no keys"),
        ("head_dim=24", "share out the model size"),
        ("position={name: rope}", "no rope positions"),
        ("norm=post", "SentencePiece only, not Words"),
    ):
        model = component_from_overrides(
            "architectures", "transformer", [*TINY_TRANSFORMER, setting]
        ).build(task)
        assert said in MarianExporter(MarianFormat()).why_not(model, task)
    search = component_from_overrides("search_strategies", "beam", []).build()
    with pytest.raises(mtplug.UserError, match="SentencePiece only"):
        MarianExporter(MarianFormat()).export(Translator(model, task, search), tmp_path / "out")
    assert import_run.main(["marian", str(tmp_path), "--output", str(tmp_path / "run")]) == 2
    assert "config.json is missing; give the model's folder" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    assert import_run.main(["marian", str(tmp_path), "--output", str(tmp_path / "run")]) == 2
    assert "model_type is bart, not marian" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "marian", "scale_embedding": false}')
    assert import_run.main(["marian", str(tmp_path), "--output", str(tmp_path / "run")]) == 2
    assert "scale_embedding is false" in capsys.readouterr().err
    assert len(Words()) == 23


def test_a_name_of_the_hub_is_told_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    told = {}
    for name in ("Helsinki-NLP/opus-mt-de-en", "models/opus", "opus", "/a/b"):
        assert import_run.main(["marian", name, "--output", "run"]) == 2
        told[name] = capsys.readouterr().err
        assert "no such file or folder" in told[name] and told[name].count("\n") == 1
    ways = [name for name, text in told.items() if "hf download " in text]
    assert ways == ["Helsinki-NLP/opus-mt-de-en"]
    line = "hf download Helsinki-NLP/opus-mt-de-en --local-dir opus-mt-de-en\n"
    assert told[ways[0]].endswith(line)


class Sly:
    pass


MARIAN = {
    "model_type": "marian", "scale_embedding": True, "activation_function": "relu", "d_model": 8,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8,
    "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 2, "eos_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(("changed", "weights", "said"), [
    ([1], {}, "config.json is damaged (expected a dict, got [1]); get it again"),
    ({"encoder_ffn_dim": ...}, {}, "no model that marian reads: KeyError: 'encoder_ffn_dim'"),
    ({"d_model": "x"}, {}, "no model that marian reads: TypeError"),
    ({}, {}, "no model that marian reads: KeyError: 'model.encoder.layers.0"),
    ({}, b"rubbish", "pytorch_model.bin is no file of torch's, or cut off"),
    ({}, b"", "pytorch_model.bin is no file of torch's, or cut off"),
    ({}, {"w": Sly()}, "Sly, which is not loaded, as it could run code"),
])  # fmt: skip
def test_a_damaged_download_is_one_line(tmp_path, capsys, changed, weights, said):
    """torch's own words are of an option that would run the code of whoever made the file."""
    config = changed if isinstance(changed, list) else MARIAN | changed
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(weights) if isinstance(weights, bytes) else torch.save(weights, file)
    (tmp_path / "vocab.json").write_text('{"</s>": 0, "<unk>": 1, "<pad>": 2}')
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"]), model_writer=written, model_type="char", vocab_size=7, minloglevel=2,
    )  # fmt: skip
    for side in ("source", "target"):
        (tmp_path / f"{side}.spm").write_bytes(written.getvalue())
    assert import_run.main(["marian", str(tmp_path), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "weights_only" not in error
    for side in ("source", "target"):
        (tmp_path / f"{side}.spm").write_bytes(b"rubbish")
    if not isinstance(changed, list) and not changed and weights == {}:
        assert import_run.main(["marian", str(tmp_path), "--output", str(tmp_path / "run")]) == 2
        assert "no model that marian reads: RuntimeError" in capsys.readouterr().err
