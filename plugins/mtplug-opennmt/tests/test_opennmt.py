"""Checkpoints in OpenNMT-py's layout, against what OpenNMT-py itself computes of them."""

import fractions
import functools
import json
import re
import sys
import types

import pytest
import sentencepiece
import torch
from layout import LAYOUTS, SHARED, SPECIAL, TARGETS, TEXTS, WORDS, checkpoint, eole
from safetensors.torch import save_file

import mtplug
from mtplug import testing
from mtplug.cli import export, import_run
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

OF_EOLE = {
    **RECORDED,
    "separate": [[-4.6377, -4.7483, -4.4315, -1.6202], [-1.6258, -1.5955], [-2.9948, -4.1169, -3.794, -4.7406, -4.7287, -2.1733, -1.6015]],
    "shaw": [[-1.5211, -1.8512, -2.4913, -4.6025], [-5.042, -4.6129], [-4.1724, -3.5406, -3.3038, -1.8483, -1.853, -4.7333, -4.6307]],
    "rotary_in_pairs": [[-2.9598, -2.2485, -1.8356, -4.4437], [-3.6476, -4.4512], [-2.1991, -1.8173, -1.8218, -2.2437, -2.2476, -2.8567, -4.4508]],
}  # fmt: skip
"""The same of Eole 0.6.4, where it computes something else: it has no bias behind the encoder's attention, and does not divide
scores of distances by the root of the head size."""


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
        assert one.token_scores == pytest.approx(wanted, abs=1e-4)


def read_eole(folder, *settings, run="run", status=0):
    """The run of a folder."""
    arguments = ["eole", str(folder), *settings, "--output", str(folder.parent / run)]
    assert import_run.main([*arguments, *(["--debug"] if not status else [])]) == status
    return folder.parent / run


@pytest.mark.parametrize("name", LAYOUTS)
def test_log_probabilities_are_those_of_eole(name, tmp_path):
    ours = mtplug.load(read_eole(eole(tmp_path / "model", name)), device="cpu")
    for one, wanted in zip(ours.score(TEXTS, TARGETS), OF_EOLE[name], strict=True):
        assert one.token_scores == pytest.approx(wanted, abs=1e-4)


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


def test_vocabularies_of_version_2_are_torchtexts_fields(tmp_path, monkeypatch):
    """Its source has no `<s>` and `</s>`. What made the file need not be installed, and is not run when it is read."""

    class Left:
        def __init__(self, **attributes):
            self.__dict__.update(attributes)

    def of(module, name):
        modules = {
            module[: m.start()]: types.ModuleType(module[: m.start()])
            for m in re.finditer(r"\.|$", module)
        }
        for key, one in modules.items():
            monkeypatch.setitem(sys.modules, key, one)
        made = type(name, (Left,), {"__module__": module})
        setattr(modules[module], name, made)
        return made

    vocab = of("torchtext.vocab", "Vocab")
    field = of("torchtext.data.field", "Field")
    tokenize = of("torchtext.data.utils", "_split_tokenizer")
    text = of("onmt.inputters.text_dataset", "TextMultiField")

    def side(*symbols):
        own = field(vocab=vocab(itos=list(symbols)), tokenize=functools.partial(tokenize))
        return text(fields=[("src", own)])

    made = checkpoint(**LAYOUTS["separate"])
    table = "encoder.embeddings.make_embedding.emb_luts.0.weight"
    made["model"][table] = made["model"][table][[0, 1, *range(4, 9)]]
    made["vocab"] = {
        "src": side("<unk>", "<blank>", *WORDS[:5]),
        "tgt": side(*made["vocab"]["tgt"]),
    }
    made["generator"] = {f"0.{name}": tensor for name, tensor in made["generator"].items()}
    made["model"] = {
        re.sub(
            r"(layer_norm(_\d)?)\.weight",
            r"\1.a_2",
            re.sub(r"(layer_norm(_\d)?)\.bias", r"\1.b_2", name),
        ): tensor
        for name, tensor in made["model"].items()
    }
    ours = mtplug.load(read(tmp_path, made), device="cpu")
    assert ours.task.source_tokenizer.pieces == ["<pad>", "</s>", "<unk>", *WORDS[:5]]
    for one, wanted in zip(ours.score(TEXTS, TARGETS), RECORDED["separate"], strict=True):
        assert one.token_scores == pytest.approx(wanted, abs=1e-4)
    assert ours.translate([""]) is not None  # nothing to look at but an end without an embedding


def test_weights_beside_the_checkpoint(tmp_path):
    """With save_format safetensors."""
    made = checkpoint(**LAYOUTS["default"])
    tensors = {
        **made.pop("model"),
        **{f"generator.{k}": t for k, t in made.pop("generator").items()},
    }
    save_file(
        {name: t.clone() for name, t in tensors.items()}, tmp_path / "model_step_10.00.safetensors"
    )
    (scored, *_) = mtplug.load(read(tmp_path, made), device="cpu").score(TEXTS, TARGETS)
    assert scored.token_scores == pytest.approx(RECORDED["default"][0], abs=1e-4)


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


@pytest.mark.parametrize("name", ["default", "separate", "shaw"])
def test_it_is_exported_to_ctranslate2(name, tmp_path):
    """Whose exporter compares log-probabilities itself; translations, too, are the same."""
    pytest.importorskip("mtplug_ctranslate2")
    made = checkpoint(**{**LAYOUTS[name], "num_kv": 0})
    run, out = read(tmp_path, made), tmp_path / "out"
    assert export.main([str(run), "--format", "ctranslate2", "--output", str(out), "--debug"]) == 0
    ours = mtplug.load(run, device="cpu")
    theirs = mtplug.load(run, device="cpu", backend="ctranslate2")
    limits = {"beam": 2, "max_ratio": 0, "max_extra": 8}
    wanted = ours.nbest([*TEXTS, ""], **limits)
    for one, other in zip(wanted, theirs.nbest([*TEXTS, ""], **limits), strict=True):
        assert one[0].parts == other[0].parts
        assert one[0].score == pytest.approx(other[0].score, abs=1e-4)


def test_it_is_fine_tuned_whole_and_by_lora(tmp_path):
    base = read(tmp_path, checkpoint(**LAYOUTS["shaw"]))
    for name, settings in (("whole", ()), ("lora", ("peft.name=lora",))):
        texts = testing.pairs(60, seed=3)
        _, losses = testing.finetune(base, tmp_path / name, texts, "optimizer.lr=0.003", *settings)
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


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"architecture": "transformer_lm"}, "architecture transformer_lm is not read; only transformer is"),
        ({"encoder": {"encoder_type": "brnn"}}, "encoder_type is brnn; only transformer is read"),
        ({"decoder": {"decoder_type": "transformer", "heads": 2}}, "encoder and decoder differ in heads: 4 and 2"),
        ({"embeddings": {"position_encoding_type": "Learned"}}, "position_encoding_type is Learned; ours does not have that"),
        ({"query_norm": True}, "query_norm is set; ours does not have that"),
        ({"rope_config": {"scaling_type": "llama3"}}, "rope_config has a scaling_type; ours does not have that"),
        ({"num_experts": 4}, "it has num_experts"),
    ],
)  # fmt: skip
def test_what_a_model_of_eole_cannot_be_is_told_in_one_line(settings, said, tmp_path, capsys):
    run = read_eole(eole(tmp_path / "model", "default", **settings), status=2)
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1 and not run.exists()


def test_subword_models_and_symbols_of_eole(tmp_path):
    """The folder has a copy of the subword model, and vocab.json may call special symbols otherwise."""
    folder = eole(tmp_path / "model", "default")
    subwords(folder)
    config, vocab = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "vocab")
    )
    config |= {"transforms": ["sentencepiece"], "transforms_configs": {"sentencepiece": {"src_subword_model": "${MODEL_PATH}/joint.model"}}}  # fmt: skip
    other = {"<blank>": "<pad>", "</s>": "<end>"}
    for side in ("src", "tgt"):
        vocab[side] = [other.get(symbol, symbol) for symbol in vocab[side]]
    vocab["specials"] |= {"pad_token": "<pad>", "eos_token": "<end>"}
    for name, made in (("config", config), ("vocab", vocab)):
        (folder / f"{name}.json").write_text(json.dumps(made))
    tokenizer = mtplug.load(read_eole(folder), device="cpu").task.source_tokenizer
    assert tokenizer.pieces == ["<pad>", "</s>", "<unk>", "<s>", *WORDS]
    assert tokenizer.model == (folder / "joint.model").read_bytes()
    (folder / "model.00.safetensors").unlink()
    assert import_run.main(["eole", str(folder), "--output", str(tmp_path / "none")]) == 2


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
        ("position.name=shaw", "position.max_distance=2", "relative_values=0.5", "scale_embeddings=false"),
    ],
)  # fmt: skip
def test_architecture_keeps_the_contract(settings):
    testing.check_architecture("opennmt", *TINY_TRANSFORMER, *settings)
