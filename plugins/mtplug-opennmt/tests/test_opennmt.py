"""Checkpoints in OpenNMT-py's layout, against what OpenNMT-py itself computes of them."""

import fractions
import json

import pytest
import sentencepiece
import torch
from layout import LAYOUTS, SHARED, SPECIAL, TARGETS, TEXTS, WORDS, checkpoint

import mtplug
from mtplug import testing
from mtplug.cli import import_run, train
from mtplug.testing.material import TINY_TRANSFORMER

RECORDED = {
    "default": [[-4.0662, -5.013, -5.6501, -2.7832], [-3.7625, -2.7635], [-5.5103, -5.8708, -5.8255, -4.9956, -4.9783, -4.7447, -2.757]],
    "separate": [[-4.6369, -4.7477, -4.4312, -1.62], [-1.6262, -1.5952], [-2.9949, -4.1162, -3.7939, -4.74, -4.7282, -2.1735, -1.6013]],
    "one_table_of_words": [[-1.9085, -1.4142, -1.4384, -5.6773], [-5.33, -5.7583], [-3.0166, -3.0388, -2.0145, -1.4136, -1.4209, -4.1549, -5.7379]],
    "concat": [[-4.0695, -5.0222, -5.6596, -2.7882], [-3.7732, -2.7692], [-5.5267, -5.8855, -5.8361, -4.9983, -4.9803, -4.7547, -2.7631]],
    "shaw": [[-1.5212, -1.849, -2.4943, -4.6247], [-5.042, -4.6272], [-4.1721, -3.55, -3.3135, -1.845, -1.8497, -4.7556, -4.649]],
    "rotary": [[-1.8309, -1.5603, -1.6423, -4.2028], [-4.0085, -4.2038], [-2.6997, -2.3831, -2.052, -1.564, -1.5625, -3.3956, -4.2025]],
    "rotary_in_pairs": [[-2.9596, -2.2484, -1.8356, -4.4437], [-3.6476, -4.4512], [-2.1992, -1.8174, -1.8219, -2.2436, -2.2475, -2.8567, -4.4508]],
    "alibi": [[-3.7118, -3.8602, -3.7408, -2.1362], [-2.7718, -2.7671], [-2.8685, -2.5984, -3.3066, -3.8081, -3.8635, -2.6318, -2.1542]],
}  # fmt: skip
"""Log-probabilities of TARGETS given TEXTS. OpenNMT-py 3.5.1 loaded each of these checkpoints with strict=True and computed
them, in fp32 with torch 2.13."""


def read(folder, made, *settings, name="run", status=0):
    """The run of a checkpoint."""
    torch.save(made, folder / "model_step_10.pt")
    run = folder / name
    arguments = ["opennmt", str(folder / "model_step_10.pt"), *settings, "--output", str(run)]
    assert import_run.main([*arguments, *(["--debug"] if not status else [])]) == status
    return run


@pytest.mark.parametrize("name", LAYOUTS)
def test_log_probabilities_are_those_of_opennmt(name, tmp_path):
    ours = mtplug.load(read(tmp_path, checkpoint(**LAYOUTS[name])), device="cpu")
    scored = ours.score(TEXTS, TARGETS)
    for one, wanted in zip(scored, RECORDED[name], strict=True):
        assert one.token_scores == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("name", ["shaw", "rotary_in_pairs", "alibi"])
def test_a_search_step_by_step_gives_the_scores_of_whole_targets(name, tmp_path):
    ours = mtplug.load(read(tmp_path, checkpoint(**LAYOUTS[name])), device="cpu")
    found = ours.nbest(TEXTS, beam=3, nbest=3, max_ratio=0, max_extra=9)
    assert any(len(one.parts[0]) > 3 for row in found for one in row)
    for text, row in zip(TEXTS, found, strict=True):
        for one in row:
            (again,) = ours.score([text], [one.text])
            assert again.token_scores[: len(one.parts[0])] == pytest.approx(
                one.token_scores[: len(one.parts[0])], abs=1e-4
            )


def test_ids_follow_the_vocabularies(tmp_path):
    made = checkpoint(**LAYOUTS["separate"])
    task = mtplug.load(read(tmp_path, made), device="cpu").task
    assert task.source_tokenizer.pieces == ["<pad>", "</s>", "<unk>", "<s>", *WORDS[:5]]
    assert task.target_tokenizer.pieces == ["<pad>", "</s>", "<unk>", "<s>", *WORDS[5:], "pad1"]
    assert task.source_tokenizer.encode(["zu what ka </s>"]) == [[8, 2, 4, 2]]


def test_what_was_averaged_or_released_is_read(tmp_path):
    """onmt_average_models and onmt_release_model write such files; weights may be in fp16."""
    made = checkpoint(**LAYOUTS["default"])
    for part in ("model", "generator"):
        made[part] = {name: tensor.half() for name, tensor in made[part].items()}
    ours = mtplug.load(read(tmp_path, made), device="cpu")
    assert {p.dtype for p in ours.model.parameters()} == {torch.float32}
    (scored, *_) = ours.score(TEXTS, TARGETS)
    assert scored.token_scores == pytest.approx(RECORDED["default"][0], abs=0.02)


def test_tied_weights_stay_tied(tmp_path):
    for name, wanted in (
        ("default", "all"), ("rotary", "decoder"), ("separate", "none"), ("one_table_of_words", "none"),
    ):  # fmt: skip
        run = read(tmp_path, checkpoint(**LAYOUTS[name]), name=name)
        model = mtplug.load(run, device="cpu").model
        assert model.config.tie_embeddings == wanted
        assert (model.output.weight is model.decoder_embedding.weight) == (wanted != "none")


def subwords(folder):
    """A model of SentencePiece, and its pieces."""
    text = folder / "text"
    text.write_text("".join(f"{a} {b}\n" for a, b in testing.pairs(200, seed=1)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "joint"), vocab_size=34, minloglevel=2, num_threads=1
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "joint.model"))
    return model, [model.id_to_piece(i) for i in range(3, len(model))]


def with_pieces(pieces, **options):
    """A checkpoint of another vocabulary."""
    made = checkpoint(position_encoding=True, **SHARED, **options)
    both = SPECIAL + pieces
    table = torch.sin(torch.arange(len(both) * 16.0)).view(-1, 16)
    for stack in ("encoder", "decoder"):
        made["model"][f"{stack}.embeddings.make_embedding.emb_luts.0.weight"] = table
    made["generator"] = {"weight": table, "bias": table[:, 0]}
    made["vocab"] |= {"src": both, "tgt": both}
    return made


def test_subword_models_named_in_the_options_become_part_of_the_run(tmp_path, monkeypatch):
    """They are looked for where the options say, and beside the checkpoint."""
    model, pieces = subwords(tmp_path)
    monkeypatch.chdir("/")
    made = with_pieces(
        pieces,
        src_subword_model="data/joint.model",
        data={"a": {"path_src": "x", "transforms": ["sentencepiece", "filtertoolong"]}},
    )
    run = read(tmp_path, made)
    (tmp_path / "joint.model").unlink()
    tokenizer = mtplug.load(run, device="cpu").task.source_tokenizer
    text = "ka lo two mix"
    (ids,) = tokenizer.encode([text])
    known = set(pieces)
    wanted = [piece if piece in known else "<unk>" for piece in model.encode(text, out_type=str)]
    assert tokenizer.tokens(ids) == wanted and tokenizer.decode(tokenizer.encode(["ka two"])) == [
        "ka two"
    ]


def test_codes_of_subword_nmt(tmp_path):
    (tmp_path / "codes").write_text("#version: 0.2\nk a</w>\nt w\ntw o</w>\n")
    pieces = ["ka", "two", "l@@", "o", "tw@@"]
    made = with_pieces(pieces, transforms=["bpe"], src_subword_model=str(tmp_path / "codes"))
    tokenizer = mtplug.load(read(tmp_path, made), device="cpu").task.target_tokenizer
    (ids,) = tokenizer.encode(["two lo"])
    assert tokenizer.tokens(ids) == ["two", "l@@", "o"]
    assert tokenizer.decode([ids]) == ["two lo"]


def test_it_is_fine_tuned_whole_and_by_lora(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = read(tmp_path, checkpoint(**LAYOUTS["shaw"]))
    for side, lines in enumerate(("source", "target")):
        text = "".join(f"{pair[side]}\n" for pair in testing.pairs(60, seed=3))
        (tmp_path / f"train.{lines}").write_text(text)
    corpus = "{source: train.source, target: train.target}"
    common = [f"training.finetune_from={run}", f"data.train={corpus}", f"data.valid={corpus}", "training.max_updates=10",
              "training.max_tokens=400", "validation.every_updates=5", "validation.translate=false", "optimizer.lr=0.003",
              "validation.best_metric=loss", "lr_scheduler.warmup_updates=1"]  # fmt: skip
    (tmp_path / "empty.yaml").write_text("seed: 1\n")
    for name, settings in (("whole", []), ("lora", ["peft.name=lora"])):
        assert train.main(["empty.yaml", f"run_dir={name}", *common, *settings, "--debug"]) == 0
        events = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        losses = [e["scores"]["loss"] for e in events if e["event"] == "validation"]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"encoder_type": "brnn"}, "encoder_type is brnn; only transformer is read"),
        ({"decoder_type": "rnn"}, "decoder_type is rnn; only transformer is read"),
        ({"model_task": "lm"}, "it is a language model"),
        ({"copy_attn": True}, "it copies from the source (copy_attn)"),
        ({"self_attn_type": "average"}, "self_attn_type is average"),
        ({"position_encoding": False}, "it has no positions"),
        ({"relative_positions_buckets": 32}, "relative_positions_buckets"),
        ({"parallel_residual": True}, "parallel_residual is set"),
        ({"lora_layers": ["linear_query"]}, "it is an adapter (lora_layers)"),
        ({"quant_layers": ["w_1"]}, "it is quantised (quant_layers)"),
        ({"num_experts": 4}, "it has num_experts"),
        ({"pos_ffn_activation_fn": "glu"}, "pos_ffn_activation_fn glu is none of ours"),
        ({"transforms": ["onmt_tokenize"]}, "text was cut by onmt_tokenize, which ours do not have; source_subwords=FILE"),
        ({"transforms": ["sentencepiece"], "src_subword_model": "gone.model"}, "its subword model gone.model (src_subword_model) is not there"),
    ],
)  # fmt: skip
def test_what_it_cannot_be_is_told_in_one_line(options, said, tmp_path, capsys):
    made = checkpoint(**LAYOUTS["default"])
    vars(made["opt"]).update(options)
    run = read(tmp_path, made, status=2)
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1 and not run.exists()


def test_a_damaged_or_foreign_file_is_told_in_one_line(tmp_path, capsys):
    made = checkpoint(**LAYOUTS["default"])
    features = {**made, "vocab": {**made["vocab"], "src_feats": [["a"]]}}
    short = {**made, "vocab": {**made["vocab"], "src": made["vocab"]["src"][:-1]}}
    less = {**made, "model": {k: v for k, v in made["model"].items() if "linear_query" not in k}}
    more = {**made, "model": {**made["model"], "decoder.extra.weight": torch.zeros(1)}}
    for number, (wrong, said) in enumerate((
        ({"weights": 1}, "is no checkpoint of OpenNMT-py's: it has no opt and vocab"),
        (features, "its source has features (src_feats)"),
        (short, "the table of source has 16 rows, its vocabulary 15"),
        (less, "the model has no encoder.transformer.0.self_attn.linear_query.weight"),
        (more, "the model has decoder.extra.weight, which ours does not have"),
        ({**made, "model": None, "generator": None}, "has no weights, and beside it is no model_step_10.00.safetensors"),
        ({**made, "opt": fractions.Fraction(1, 2)}, "holds a pickled fractions.Fraction, which is not loaded"),
    )):  # fmt: skip
        read(tmp_path, wrong, name=f"run{number}", status=2)
        told = capsys.readouterr().err
        assert said in told and len(told.splitlines()) == 1


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("position.name=shaw", "position.max_distance=2", "relative_values=true", "scale_embeddings=false"),
    ],
)  # fmt: skip
def test_architecture_keeps_the_contract(settings):
    testing.check_architecture("opennmt", *TINY_TRANSFORMER, *settings)
