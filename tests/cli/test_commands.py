"""Commands on a trained run."""

import json
import os
import subprocess
import sys

import pytest

import mtplug
from mtplug.cli import (
    average,
    bench,
    evaluate,
    export,
    fisher,
    inspect,
    plugins,
    preprocess,
    translate,
)
from tests import tiny


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("ka lo\n\n   \nmi nu pe\n")
    return path


def test_every_line_gets_one_line(tiny_run, source, tmp_path):
    target = tmp_path / "out.txt"
    assert translate.main([str(tiny_run), "--input", str(source), "--output", str(target)]) == 0
    lines = target.read_text().splitlines()
    assert [bool(line) for line in lines] == [True, False, False, True]
    assert lines[0] == mtplug.load(tiny_run).translate(["ka lo"])[0]


def test_standard_streams_and_bad_bytes(tiny_run):
    done = subprocess.run(
        [sys.executable, "-m", "mtplug.cli.translate", str(tiny_run), "--chunk", "2"],
        input=b"ka\n\xff lo\nmi", capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.decode().count("\n") == 3
    assert "1 line (2): not valid UTF-8" in done.stderr.decode()


def test_closed_pipe_is_no_traceback(tiny_run, tmp_path):
    (tmp_path / "many").write_text("ka lo mi\n" * 3000)
    line = f"{sys.executable} -m mtplug.cli.translate {tiny_run} --beam 1 --input {tmp_path}/many"
    done = subprocess.run(
        f"{line} --chunk 50 | head -1", shell=True, capture_output=True, text=True
    )
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr


def test_jsonl_has_scores_tokens_and_nbest(tiny_run, source, capsys):
    options = ["--input", str(source), "--format", "jsonl", "--beam", "4", "--nbest", "2"]
    assert translate.main([str(tiny_run), *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["source"] for r in rows] == ["ka lo", "", "", "mi nu pe"]
    assert [len(r["nbest"]) for r in rows] == [2, 1, 1, 2]
    best = rows[0]["nbest"][0]
    assert best["text"] == rows[0]["text"] and len(rows[0]["nbest"]) == 2
    assert len(best["token_scores"]) == len(best["tokens"]) + 1
    mean = sum(best["token_scores"]) / len(best["token_scores"])
    assert best["score"] == pytest.approx(mean, abs=1e-5)


def test_long_lines_follow_the_policy(tiny_run, tmp_path, capsys):
    path = tmp_path / "long"
    path.write_text("ka " * 30 + "\n")
    for policy, tokens, said in (("truncate", 10, "cut"), ("split", 30, "split")):
        options = [f"data.on_long={policy}", "data.max_length=10", "--format", "jsonl"]
        assert translate.main([str(tiny_run), "--input", str(path), *options]) == 0
        captured = capsys.readouterr()
        assert f"1 line (1): longer than 10 tokens, {said}" in captured.err
        assert json.loads(captured.out)["notes"] == [f"longer than 10 tokens, {said}: 30"]
        assert abs(len(json.loads(captured.out)["tokens"]) - tokens) <= tokens / 2
    options = ["data.on_long=error", "data.max_length=10"]
    assert translate.main([str(tiny_run), "--input", str(path), *options]) == 2
    assert "line 1 has 30 tokens" in capsys.readouterr().err


def test_mistakes_are_one_line(tiny_run, tmp_path, capsys):
    for main, args, message in (
        (translate.main, [str(tiny_run), "search.beem=3"], "did you mean 'beam'"),
        (translate.main, [str(tiny_run), "--beam", "0"], "nbest must be from 1 to beam"),
        (translate.main, [str(tiny_run), "--input", "nowhere"], "no such file"),
        (translate.main, [str(tiny_run), "--input", str(tmp_path)], "that is a folder"),
        (translate.main, [str(tiny_run), "--chunk", "0"], "--chunk 0: must be at least 1"),
        (translate.main, [str(tmp_path)], "is no run"),
        (translate.main, [str(tiny_run / "config.yaml")], "config.yaml is a file; give the folder"),
        (evaluate.main, [str(tiny_run), "--show", "-1"], "--show -1: must be 0 or more"),
        (evaluate.main, [str(tiny_run), "--show", "1", "--json"], "JSON holds scores only"),
        (bench.main, ["run", "translate", "sentences=0"], "sentences must be at least 1"),
        (bench.main, ["run", "train", "rounds=0"], "rounds must be at least 1"),
        (
            export.main,
            [str(tiny_run), "--format", "marian", "--output", str(tiny_run)],
            "that folder is no export",
        ),
        (evaluate.main, [str(tiny_run), "data.test=null"], "has no data.test"),
        (average.main, [str(tiny_run), "--name", "best"], "that name is taken"),
        (average.main, [str(tmp_path)], "nothing was saved yet"),
        (inspect.main, [str(tmp_path)], "neither a run nor a checkpoint"),
    ):
        assert main(args) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("main", "line", "message"),
    [
        (translate.main, "run --inptu x", "mtplug-translate: unrecognized arguments: --inptu x; did you mean --input? see"),
        (translate.main, "run --format xml", "invalid choice: 'xml' (choose from"),
        (translate.main, "", "are required: run; see"),
        (bench.main, "run train --plto x", "mtplug-bench run: unrecognized arguments: --plto x; did you mean --plot? see"),
        (plugins.main, "show a b c", "mtplug-plugins show: unrecognized arguments: c; see mtplug-plugins show --help"),
        (plugins.main, "lits", "invalid choice: 'lits' (choose from"),
    ],
)  # fmt: skip
def test_mistakes_in_options_are_one_line(main, line, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1


def test_a_second_interrupt_while_python_ends_shows_no_traceback():
    """Who presses Ctrl-C twice saw `Exception ignored in atexit callback` below what was saved."""
    code = """
import atexit, signal, sys
from mtplug.cli import common
def again():  # runs late, like torch's
    signal.raise_signal(signal.SIGINT)
def body(args):
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(again)
sys.exit(common.run(common.parser("x", ""), body, []))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "x: stopped\n")


def test_outputs_that_are_inputs_are_refused(tiny_run, tmp_path, capsys):
    data = tmp_path / "test.txt"
    data.write_text("ka\tnine\n")
    weights = tiny_run / "checkpoints" / "best" / "model.safetensors"
    before = weights.read_bytes()
    test = f"data.test={{name: tsv, path: {data}}}"
    for main, args, message in (
        (evaluate.main, [test, "--output", str(tmp_path)], f"--output {data}: that is data.test;"),
        (fisher.main, ["--output", str(weights)], f"--output {weights}: that is --checkpoint;"),
    ):
        assert main([str(tiny_run), *args]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert data.read_text() == "ka\tnine\n" and weights.read_bytes() == before


def test_evaluate_gives_what_training_gave(tiny_run, capsys):
    assert evaluate.main([str(tiny_run), "--show", "2"]) == 0
    out = capsys.readouterr().out
    events = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    (test,) = [e for e in events if e["event"] == "test"]
    for text in test["texts"]:
        assert text in out
    assert out.count("reference  ") == 2
    assert evaluate.main([str(tiny_run), "--json", "--split", "valid"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"]["bleu"]["score"] > 50


def test_scores_are_not_lost_with_an_output_that_cannot_be_written(
    tiny_run, tmp_path, capsys, monkeypatch
):
    """A folder that cannot be made was told after all was translated, a full disk instead of the scores."""
    (tmp_path / "file").touch()
    with monkeypatch.context() as never:
        never.setattr(mtplug.translator.Translator, "translate", None)
        assert evaluate.main([str(tiny_run), "--output", str(tmp_path / "file" / "in")]) == 2
    assert "in: Not a directory" in capsys.readouterr().err
    (tmp_path / "out" / "test.txt").mkdir(parents=True)  # in the place of a full disk
    assert evaluate.main([str(tiny_run), "--output", str(tmp_path / "out")]) == 2
    assert "BLEU = " in capsys.readouterr().out


def test_ends_of_documents_are_no_sentences(tiny_run, tmp_path, capsys):
    for side, text in (("xx", "ka\n\nlo\n"), ("en", "nine\n\ntwo\n")):
        (tmp_path / f"test.{side}").write_text(text)
    assert evaluate.main([str(tiny_run), f"data.root={tmp_path}"]) == 0
    assert "test: 2 sentences" in capsys.readouterr().out


def test_corpora_whose_files_have_one_name_are_told_apart(tiny_run, tmp_path, capsys):
    """The scores and translations of the last one were all there was."""
    corpora = []
    for folder, n in (("d1", 1), ("d2", 2), ("d2", 2)):
        (tmp_path / folder).mkdir(exist_ok=True)
        for side, text in (("xx", "ka"), ("en", "nine")):
            (tmp_path / folder / f"test.{side}").write_text(f"{text}\n" * n)
        corpora.append(f"{{source: {folder}/test.xx, target: {folder}/test.en}}")
    given = [f"data.root={tmp_path}", f"data.test=[{', '.join(corpora)}]"]
    line = [str(tiny_run), *given, "--json", "--output", str(tmp_path / "out")]
    assert evaluate.main(line) == 0
    labels = ["d1-test", "d2-test", "d2-test-2"]
    assert list(json.loads(capsys.readouterr().out)) == labels
    counts = [(tmp_path / "out" / f"{label}.txt").read_text().count("\n") for label in labels]
    assert counts == [1, 2, 2]


def test_average_of_those_that_validated_best(tmp_path, capsys):
    tiny.write_corpus(tmp_path)
    settings = ("training.max_updates=8", "validation.every_updates=2", "checkpoint.keep_last=9")
    run = tiny.train(tmp_path, "run", *settings)
    scores = {2: 10.0, 4: 30.0, 6: 5.0, 8: 20.0}
    file = run / "metrics.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()]
    for event in events:
        if event["event"] == "validation":
            event["scores"] = {"bleu": scores[event["update"]], "loss": scores[event["update"]]}
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert average.main([str(run), "--best", "2"]) == 0
    assert "average of step-00000004, step-00000008" in capsys.readouterr().out
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("best_metric: bleu", "best_metric: loss"))
    assert average.main([str(run), "--best", "3", "--name", "low"]) == 0
    assert "step-00000002, step-00000006, step-00000008" in capsys.readouterr().out
    for options, said in (
        (["--best", "5"], "has 4 checkpoints with a loss"),
        (["--best", "0"], "must be at least 1"),
        (["step-00000002", "--best", "1"], "no names beside it"),
    ):
        assert average.main([str(run), *options]) == 2
        assert said in capsys.readouterr().err


def test_average_and_inspect(tiny_run, capsys):
    assert average.main([str(tiny_run), "--last", "2", "--name", "two"]) == 0
    capsys.readouterr()
    assert average.main([str(tiny_run), "--name", "two"]) == 2  # `best` may lead to it
    assert "/two is there already, the average of step-" in capsys.readouterr().err
    assert mtplug.load(tiny_run, checkpoint="two").translate(["ka"])
    capsys.readouterr()
    assert inspect.main([str(tiny_run), "--tensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"]["encoder_embedding.weight"]
    assert inspect.main([str(tiny_run)]) == 0
    assert "best" in capsys.readouterr().out
    assert inspect.main([str(tiny_run / "checkpoints" / "last"), "--tensors", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    translator = mtplug.load(tiny_run, checkpoint="last")
    assert found["parameters"] == sum(p.numel() for p in translator.model.parameters())
    assert found["names"]["encoder.0.ffn.body.inner.weight"].endswith("[64, 32]")


def test_preprocess_writes_what_training_opens(tmp_path, capsys):
    tiny.write_corpus(tmp_path)
    assert preprocess.main([*tiny.arguments(tmp_path, "run"), "--workers", "1"]) == 0
    assert (tmp_path / "run" / "data" / "train-0" / "store.json").is_file()
    assert not (tmp_path / "run" / "checkpoints").exists()
    capsys.readouterr()
    tiny.train(tmp_path, "run", "training.max_updates=2", "data.test=null")
    error = capsys.readouterr().err
    assert "data: opened" in error and "tokenizer: training" not in error


def test_messages_tell_what_was_done_to_tokenizer_and_store(tiny_run, tmp_path, capsys):
    tiny.write_corpus(tmp_path)
    line = tiny.arguments(tmp_path, "run")
    assert preprocess.main([*line, "tokenizer.model=nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mtplug-preprocess: tokenizer.model: nowhere is no run")
    assert preprocess.main(line) == 0
    assert "data: wrote" in capsys.readouterr().err
    assert preprocess.main([*line, f"tokenizer.model={tiny_run}"]) == 0
    error = capsys.readouterr().err
    assert f"tokenizer: that of {tiny_run}\n" in error and "training" not in error
    assert "data: rebuilt" in error


def test_python_interface(tiny_run):
    translator = mtplug.load(tiny_run)
    assert translator.translate([]) == []
    assert translator.translate(["ka", ""], beam=3)[1] == ""
    with pytest.raises(mtplug.UserError, match="did you mean 'beam'"):
        translator.translate(["ka"], beem=3)
    with pytest.raises(TypeError, match="expected a list of texts, got one text"):
        translator.translate("ka")
    with pytest.raises(TypeError, match=r"texts\[1\]: expected a text, got None"):
        translator.score(["ka", None], ["nine", "ten"])


def test_benchmark_suite_runs(capsys, tmp_path):
    from mtplug.cli.bench import main

    assert main(["list"]) == 0
    assert "train" in capsys.readouterr().out
    sizes = ["dim=16", "ffn_dim=16", "layers=1", "vocabulary=50", "sentences=2", "rounds=2"]
    assert main(["run", "train", *sizes[:3], "--output", str(tmp_path / "o.json"), *sizes[3:]]) == 0
    assert "torch.nn.Transformer" in capsys.readouterr().out
    found = json.loads((tmp_path / "o.json").read_text())
    left_out = len(found["left_out"])  # bf16, where the processor only emulates it
    assert found["conditions"]["settings"]["dim"] == 16
    assert len(found["rows"]) == 4 - 2 * left_out and left_out in (0, 1)
    assert main(["run", "trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    for given, wrong in ((["run", "train"], ["--outptu", "dim=16"]), (["list"], ["dim=16"])):
        with pytest.raises(SystemExit) as stopped:
            main([*given, *wrong])
        assert stopped.value.code == 2
        assert f"unrecognized arguments: {wrong[0]}" in capsys.readouterr().err


def test_options_of_every_command_may_stand_before_a_subcommand(tmp_path, capsys):
    from mtplug.cli import bench, plugins

    file = tmp_path / "mine.py"
    file.write_text(
        "import mtplug\n@mtplug.hookimpl\ndef register_benchmarks(register):\n"
        "    register('mine', Mine)\n"
        "class Mine:\n"
        "    def __init__(self, config=None): pass\n"
        "    def run(self): return [{'number': 7}]\n"
    )
    assert plugins.main(["--plugin", str(file), "--block=lion", "list"]) == 0
    assert "mine.py" in capsys.readouterr().out
    assert bench.main(["mine", "--plugin", str(file)]) == 0
    assert "7" in capsys.readouterr().out
    assert bench.main(["mnie", "--plugin", str(file)]) == 2
    assert "did you mean 'mine'" in capsys.readouterr().err


def test_what_a_terminal_would_obey_is_escaped(tmp_path, capsys):
    """A name may set a terminal's title, or hide what is told."""
    for name in ("a\x1b]0;b\x07c", os.fsdecode(b"d\xff"), "ü 日本"):
        (tmp_path / name).mkdir()
        assert inspect.main([str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        shown = {"a": r"a\x1b]0;b\x07c", "d": r"d\udcff"}.get(name[0], name)
        assert f"{tmp_path}/{shown} is neither" in error
        assert "\x1b" not in error and error.count("\n") == 1
