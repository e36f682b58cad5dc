"""mtplug-translate on odd lines and odd streams: each line is answered or reported, none is lost."""

import copy
import gzip
import json
import math
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import mtplug
from mtplug.cli import output, translate
from mtplug.data.tokenizers import SentencePiece, SentencePieceConfig
from mtplug.search.base import Request, SearchConfig
from mtplug.search.rules import Rules
from mtplug.search.wishes import Speller, Wishes
from mtplug.translator import Translation
from tests import tiny


def answers(run, tmp_path, capsys, text, *options):
    path = tmp_path / "in"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    code = translate.main([str(run), "--input", str(path), *options])
    captured = capsys.readouterr()
    return code, captured.out.split("\n")[:-1], captured.err


def test_answers_come_before_the_input_ends_and_ctrl_c_keeps_them(tiny_run):
    with subprocess.Popen(
        [sys.executable, "-m", "mtplug.cli.translate", str(tiny_run), "--beam", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell's background jobs ignore it; this test may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        expected = mtplug.load(tiny_run).translate(["ka lo", "mi"], beam=1)
        for line, answer in zip(("ka lo\n", "mi\n"), expected, strict=True):
            process.stdin.write(line.encode())
            process.stdin.flush()
            assert (
                process.stdout.readline().decode() == answer + "\n"
            )  # would wait for ever otherwise
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert b"Traceback" not in process.stderr.read()


def test_a_closed_standard_output_is_told(tiny_run, tmp_path):
    """The translations were lost, and the exit status was 0."""
    file = tmp_path / "in"
    file.write_text("ka lo\n")
    line = [sys.executable, "-m", "mtplug.cli.translate", str(tiny_run), "--input", str(file)]
    for more, status in ((["--output", str(tmp_path / "out")], 0), ([], 2)):
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *line, *more], stderr=subprocess.PIPE, text=True
        )
        assert done.returncode == status, done.stderr
    assert done.stderr == "mtplug-translate: standard output is closed; give --output FILE\n"
    assert (tmp_path / "out").read_text().count("\n") == 1


def test_bytes_that_are_no_text_are_replaced_and_told(tiny_run, tmp_path, capsys):
    """It was told that they are not valid, and not what becomes of them."""
    code, lines, error = answers(tiny_run, tmp_path, capsys, b"ka\n\xff lo\n", "--beam", "1")
    assert code == 0 and len(lines) == 2
    assert "1 line (2): not valid UTF-8, unreadable bytes replaced" in error


def test_a_line_of_ten_thousand_tokens_is_cut_and_said(tiny_run, tmp_path, capsys):
    text = "ka\n" + "lo " * 10_000 + "\nmi\n"
    code, lines, error = answers(tiny_run, tmp_path, capsys, text, "--beam", "1")
    assert code == 0 and len(lines) == 3
    assert lines[0] == mtplug.load(tiny_run).translate(["ka"], beam=1)[0]
    assert "1 line (2): longer than 256 tokens, cut" in error


@pytest.mark.parametrize(
    "odd",
    ["ka\x00lo", "ka\x07", "\x1b[31mka", "ka\u2028lo", "\ufeffka", "ka\r", "\u202eka lo", "ka\x85lo", "\x0c", "🙂" * 50],
)  # fmt: skip
def test_control_characters_give_one_line_each(tiny_run, tmp_path, capsys, odd):
    code, lines, _ = answers(tiny_run, tmp_path, capsys, f"mi\n{odd}\nmi\n", "--beam", "1")
    assert code == 0 and len(lines) == 3
    assert lines[0] == lines[2] and not any(c in lines[1] for c in "\r\u2028\x85\x0c\x00")


def test_wishes_of_jsonl_lines_are_met_or_reported(tiny_run, tmp_path, capsys):
    rows = [
        {"id": 7, "source": "ka lo", "required": ["ten"]},
        {"source": "ka lo", "prefix": " nine  ten"},
        {"source": "ka lo", "forbidden": ["one"]},
        {"source": 5},
        {"source": "ka lo"},
    ]
    text = "".join(json.dumps(r) + "\n" for r in rows) + "no json\n"
    options = ("--input-format", "jsonl", "--format", "jsonl")
    code, lines, error = answers(tiny_run, tmp_path, capsys, text, *options)
    found = [json.loads(line) for line in lines]
    assert code == 2 and len(found) == 6
    assert "ten" in found[0]["text"].split() and found[0]["id"] == 7
    assert found[1]["text"].startswith("nine ten") and "unmet" not in found[1]
    assert "one" not in found[2]["text"].split()
    assert [f.get("line") for f in found] == [None, None, None, 4, None, 6]
    assert "2 lines (4, 6): not translated" in error
    best = found[4]
    assert {t for _, t in best["alignment"]} == set(range(len(best["tokens"])))
    assert all(0 <= s < len(best["source_tokens"]) for s, _ in best["alignment"])


def test_what_cannot_be_met_is_reported(tiny_run, tmp_path, capsys):
    """The vocabulary is of words, so that an unknown one cannot be written."""
    text = json.dumps({"source": "ka lo", "required": ["zebra"]}) + "\n"
    options = ("--input-format", "jsonl", "--format", "jsonl")
    code, lines, error = answers(tiny_run, tmp_path, capsys, text, *options)
    assert code == 0 and json.loads(lines[0])["unmet"] == ["required: zebra"]
    assert "1 line (1): not all wishes met" in error


def test_given_translations_are_scored_as_search_scores_them(tiny_run, tmp_path, capsys):
    translator = mtplug.load(tiny_run)
    (found,) = translator.nbest(["ka lo mi"], beam=4)
    given = tmp_path / "given"
    given.write_text(found[0].text + "\n")
    code, lines, _ = answers(tiny_run, tmp_path, capsys, "ka lo mi\n", "--score", str(given))
    assert code == 0 and float(lines[0]) == pytest.approx(found[0].score, abs=1e-4)
    halved = ("--score", str(given), "--precision", "bf16")
    (rough,) = answers(tiny_run, tmp_path, capsys, "ka lo mi\n", *halved)[1]
    half = mtplug.load(tiny_run, precision="bf16").score(["ka lo mi"], [found[0].text])
    assert rough == f"{half[0].score:.6f}" != lines[0]
    code, _, error = answers(tiny_run, tmp_path, capsys, "ka\nlo\n", "--score", str(given))
    assert code == 2 and "no line 2" in error
    given.write_text("one\ntwo\n")
    code, _, error = answers(tiny_run, tmp_path, capsys, "ka\n", "--score", str(given))
    assert code == 2 and "more lines than the 1 of the input" in error


def test_glossary_and_forbidden_words_hold_for_every_line(tiny_run, tmp_path, capsys):
    glossary, forbidden = tmp_path / "g.tsv", tmp_path / "f.txt"
    glossary.write_text("# terms\nka\tnine|ten\n")
    forbidden.write_text("nine\n")
    options = (f"search.terminology={glossary}", f"search.forbidden_file={forbidden}")
    code, lines, _ = answers(tiny_run, tmp_path, capsys, "ka lo\nlo\n", *options)
    assert code == 0 and "ten" in lines[0].split() and "nine" not in lines[0].split()
    code, _, error = answers(tiny_run, tmp_path, capsys, "ka\n", "search.terminology=nowhere")
    assert code == 2 and "search.terminology: nowhere: no such file" in error


def test_lines_whose_other_translations_lack_something_are_counted_too(
    tiny_run, tmp_path, capsys, monkeypatch
):
    """Only the best one's were told of."""
    rank = "mtplug.search.beam.BeamSearch.rank"

    def lacking(self, texts, rows):
        for row, which in zip(rows, (0, 1), strict=True):
            row[which].unmet = ["required: ten"]
        return rows

    monkeypatch.setattr(rank, lacking)
    given = ("--nbest", "2", "--beam", "2")
    code, _, error = answers(tiny_run, tmp_path, capsys, "ka lo mi\nlo mi\n", *given)
    assert code == 0 and "1 line (1): not all wishes met\n" in error
    assert "1 line (2): not all wishes met by translations below the best\n" in error


def test_each_line_has_as_many_answers_as_asked_for(tiny_run, tmp_path, capsys):
    """Else nobody can tell which of the lines of an n-best list belong together."""
    code, lines, _ = answers(
        tiny_run, tmp_path, capsys, "ka\n\nmi\n", "--nbest", "3", "--beam", "3"
    )
    assert code == 0 and len(lines) == 9 and lines[3:6] == [""] * 3
    found = [t.text for t in mtplug.load(tiny_run).nbest(["mi"], beam=3, nbest=3)[0]]
    assert lines[6:] == found + [""] * (3 - len(found))
    text = "no json\n" + json.dumps({"source": "ka"}) + "\n"
    options = ("--nbest", "2", "--input-format", "jsonl")
    code, lines, _ = answers(tiny_run, tmp_path, capsys, text, *options)
    assert code == 2 and len(lines) == 4 and lines[:2] == ["", ""]


def test_lines_that_cannot_be_translated_keep_what_tells_them_apart(tiny_run, tmp_path, capsys):
    rows = [{"id": 7, "source": 5}, {"id": 8, "source": "", "required": ["ten"], "prefix": "nine"}]
    text = "".join(json.dumps(r) + "\n" for r in rows) + "no json\n"
    options = ("--input-format", "jsonl", "--format", "jsonl", "--chunk", "2")
    code, lines, error = answers(tiny_run, tmp_path, capsys, text, *options)
    found = [json.loads(line) for line in lines]
    assert code == 2 and (found[0]["id"], found[0]["line"]) == (7, 1)
    assert found[1]["unmet"] == ["required: ten", "prefix: nine"]  # an empty text has neither
    assert "1 line (2): not all wishes met" in error
    assert found[2]["error"].startswith("no JSON: ") and found[2]["line"] == 3


def test_answers_hold_nothing_of_an_earlier_run(tiny_run, tmp_path, capsys):
    """What a first run reported came out again with the second run's translations, as if still true."""
    earlier = {
        "id": 1,
        "source": "ka lo",
        "unmet": ["required: ten"],
        "error": "no",
        "notes": ["x"],
    }
    options = ("--input-format", "jsonl", "--format", "jsonl")
    code, lines, _ = answers(tiny_run, tmp_path, capsys, json.dumps(earlier) + "\n", *options)
    (found,) = map(json.loads, lines)
    assert code == 0 and found["id"] == 1 and not {"unmet", "error", "notes"} & set(found)


def test_what_is_no_line_of_json_is_told_of_that_line_alone(tiny_run, tmp_path, capsys):
    """Brackets within brackets ended the whole command with a RecursionError."""
    text = "\ufeff" + json.dumps({"source": "ka"}) + "\n" + "[" * 100_000 + "\n"
    text += json.dumps({"source": "ka \ud800", "prefix": "\ud800"}) + "\n"
    options = ("--input-format", "jsonl", "--format", "jsonl")
    code, lines, error = answers(tiny_run, tmp_path, capsys, text, *options)
    found = [json.loads(line) for line in lines]
    assert code == 2 and found[0]["text"]
    assert found[1] == {"line": 2, "error": "no JSON: nested too deeply"}
    assert "1 line (3): halves of surrogate pairs replaced" in error
    plain = answers(tiny_run, tmp_path, capsys, "ka\n")[1]
    assert answers(tiny_run, tmp_path, capsys, "\ufeffka\n")[1] == plain


def test_scores_without_bound_are_null_in_json():
    """A translation that the rules make impossible has one, and JSON has no infinity."""
    given = Translation("one", -math.inf, ["one"], [-0.5, -math.inf], False)
    told = json.loads(json.dumps(output._fields(given), allow_nan=False))
    assert (told["score"], told["token_scores"]) == (None, [-0.5, None])


def test_a_line_without_a_target_has_no_score(tiny_run, tmp_path, capsys):
    """It was scored as if its translation were empty."""
    text = '{"source": "ka"}\n{"source": "ka", "target": "one"}\n'
    options = ("--input-format", "jsonl", "--format", "jsonl", "--score", "-")
    code, lines, _ = answers(tiny_run, tmp_path, capsys, text, *options)
    found = [json.loads(line) for line in lines]
    assert code == 2 and found[0]["error"] == "no 'target' to score" and found[1]["text"] == "one"


def test_forbidden_words_hold_for_every_piece_of_a_text_that_is_split(tiny_run, tmp_path, capsys):
    """They held for the first piece only."""
    text = " ".join(["ka lo mi ka"] * 8) + "\n"
    cut = ("data.on_long=split", "data.max_length=4")
    code, (plain,), _ = answers(tiny_run, tmp_path, capsys, text, *cut)
    word = plain.split()[-1]
    assert code == 0 and word in plain.split()[:8]
    _, (found,), error = answers(
        tiny_run, tmp_path, capsys, text, *cut, f"search.forbidden=[{word}]"
    )
    assert word not in found.split() and "wishes" not in error


def test_a_prefix_that_ends_with_a_blank_ends_a_word():
    """The blank was dropped, and "one " could become "onehalf"."""
    words = [text for pair in tiny.pairs(300, 0) for text in pair]
    config = SentencePieceConfig(model_type="bpe", vocab_size=40)
    speller = Speller(SentencePiece.train(config, words, "joint"))
    inside = speller.word_inside
    assert inside is not None and inside.any()
    for prefix, closed in (("one ", True), ("one", False)):
        request = speller.request(Wishes(prefix=prefix))
        assert request.closed == closed and not speller.request(Wishes(prefix=prefix), False).closed
        rules = Rules(SearchConfig(), torch.tensor([9, 9]), [Request(), request])
        scores = torch.zeros(2, len(inside))
        step = len(request.prefix)
        rules.apply(scores, torch.tensor([0, 1]), torch.zeros(2, step, dtype=torch.long))
        assert scores[1, inside].isinf().all() == closed and scores[1, ~inside][3:].isfinite().all()
        assert scores[0, 3:].isfinite().all()


def test_tokens_of_a_prefix_are_forced_beside_sentences_whose_prefix_has_ended():
    """Rows that end a word took the place of those that are forced."""
    inside = torch.zeros(12, dtype=torch.bool)
    inside[6:] = True  # tokens that continue a word
    requests = [
        Request(prefix=ids, word_inside=inside, closed=closed)
        for ids, closed in (([3], True), ([4, 7, 5], True), ([5, 8], False), ([], False))
    ]
    rules = Rules(SearchConfig(), torch.full((4,), 9), requests)
    for step in range(4):
        scores = torch.zeros(4, 12)
        rules.apply(scores, torch.arange(4), torch.full((4, step), 3))
        for row, request in zip(scores, requests, strict=True):
            allowed = {*range(1, 12)}  # all but padding
            if step < len(request.prefix):
                allowed = {request.prefix[step]}
            elif step == len(request.prefix) and request.closed:
                allowed -= {*range(6, 12)}
            assert {*row.isfinite().nonzero().flatten().tolist()} == allowed


def test_keys_that_mean_another_are_told(tiny_run, tmp_path, capsys):
    rows = [
        {"source": "ka", "constraints": ["ten"], "avoid": ["one"]},
        {"source": "ka", "prefixx": "ten", "id": 3},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    options = ("--input-format", "jsonl", "--format", "jsonl")
    code, lines, error = answers(tiny_run, tmp_path, capsys, text, *options)
    assert code == 0 and json.loads(lines[1])["id"] == 3
    for line, key, meant in (
        (1, "constraints", "required"),
        (1, "avoid", "forbidden"),
        (2, "prefixx", "prefix"),
    ):
        assert f"1 line ({line}): '{key}' is handed through unread; '{meant}' is read" in error
    code, _, error = answers(tiny_run, tmp_path, capsys, lines[0] + "\n", *options)
    assert code == 0 and "'source_tokens'" not in error  # of our own answers


@pytest.fixture(scope="module")
def turned_run(tiny_run, tmp_path_factory):
    """The tiny run as if it were one of the other direction."""
    other = shutil.copytree(tiny_run, tmp_path_factory.mktemp("turned") / "run", symlinks=True)
    config = other / "config.yaml"
    text = config.read_text()
    swapped = text.replace("source_lang: xx", "source_lang: EN").replace(
        "target_lang: en", "target_lang: xx"
    )
    config.write_text(swapped.replace("source_lang: EN", "source_lang: en"))
    return other


def test_an_ensemble_with_the_other_direction_is_refused(tiny_run, turned_run, tmp_path, capsys):
    """With one vocabulary for both languages, their mean was taken without a word."""
    code, lines, error = answers(tiny_run, tmp_path, capsys, "ka\n", "--ensemble", str(turned_run))
    assert (code, lines) == (2, [])
    assert f"{turned_run} translates en-xx; give a run of xx-en" in error


def test_runs_of_an_ensemble_may_have_checkpoints_of_their_own(tiny_run, tmp_path, capsys):
    steps = sorted(p.name for p in (tiny_run / "checkpoints").glob("step-*"))
    both = mtplug.load(tiny_run, "last", "cpu", ensemble=[f"{tiny_run}:{steps[0]}"])
    same = mtplug.load(tiny_run, f"last,{steps[0]}", "cpu")
    given = ["ka lo mi"], ["one two three"]
    assert both.score(*given)[0].token_scores == pytest.approx(same.score(*given)[0].token_scores)
    code, _, error = answers(tiny_run, tmp_path, capsys, "ka\n", "--ensemble", f"{tiny_run}:step-9")
    assert code == 2 and "has no checkpoint 'step-9'" in error


@pytest.mark.parametrize("way", ["forward", "reverse"])
def test_reranking_orders_the_nbest_list_by_all_scores(tiny_run, turned_run, tmp_path, capsys, way):
    """Truth: the beam's list and forced scores, added by hand. A translation that lacks a wish stays behind,
    however well it is scored, and lines of which none can be read are answered."""
    translator = mtplug.load(tiny_run)
    (beam,) = translator.nbest(["ka lo mi"], beam=4, nbest=4)
    sides = ["ka lo mi"] * len(beam), [t.text for t in beam]
    judged = translator.score(*(sides if way == "forward" else sides[::-1]))
    due = {t.text: t.score + 2.0 * j.score for t, j in zip(beam, judged, strict=True)}
    right, wrong = (tiny_run, turned_run) if way == "forward" else (turned_run, tiny_run)
    options = ("search.name=rerank", f"search.{way}=[{right}]", f"search.{way}_weight=2",
               "search.beam=4", "search.nbest=4")  # fmt: skip
    (found,) = mtplug.load(tiny_run, overrides=options).nbest(["ka lo mi"])
    assert [t.text for t in found] == sorted(due, key=lambda text: -due[text])
    assert [t.score for t in found] == pytest.approx([due[t.text] for t in found], abs=1e-4)

    search = mtplug.load(tiny_run, overrides=options).search
    beam[0].unmet = ["required: ten"]
    assert search.rank(["ka lo mi"], [beam])[0][-1] is beam[0]
    more = ("--input-format", "jsonl", "--format", "jsonl")
    code, lines, _ = answers(tiny_run, tmp_path, capsys, "no json\n", *options, *more)
    assert code == 2 and "error" in json.loads(lines[0])
    code, _, error = answers(
        tiny_run, tmp_path, capsys, "ka\n", *options, f"search.{way}=[{wrong}]"
    )
    due, given = ("xx-en", "en-xx") if way == "forward" else ("en-xx", "xx-en")
    assert code == 2 and f"search.{way}: {wrong} translates {given}; give a run of {due}" in error


def test_a_tag_is_no_text_for_a_run_without_tags(tiny_run, turned_run):
    """Sources come to the ranking as the run that translates has them."""
    translator = mtplug.load(
        tiny_run,
        overrides=["search.name=rerank", f"search.reverse=[{turned_run}]", "search.nbest=1"],
    )
    beam = mtplug.load(tiny_run).nbest(["ka lo mi"])
    scores = [
        translator.search.rank([source], copy.deepcopy(beam))[0][0].score
        for source in ("ka lo mi", "<2en> ka lo mi")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_where_output_goes(tiny_run, tmp_path, capsys):
    made = tmp_path / "new" / "out"
    assert answers(tiny_run, tmp_path, capsys, "ka\n", "--output", str(made))[0] == 0
    assert made.read_text() == mtplug.load(tiny_run).translate(["ka"])[0] + "\n"
    code, _, error = answers(tiny_run, tmp_path, capsys, "ka\n", "--output", str(tmp_path))
    assert code == 2 and error == f"mtplug-translate: {tmp_path}: Is a directory\n"
    code, _, error = answers(tiny_run, tmp_path, capsys, "ka\n", "--device", "gpu")
    assert code == 2 and "expected auto, cpu, cuda or cuda:N" in error


@pytest.mark.parametrize("name", ["in", "link", "given", "terms"])
def test_an_output_that_is_an_input_is_refused_and_left_as_it_is(tiny_run, tmp_path, capsys, name):
    """Opening it for writing emptied it, and the command ended well."""
    (tmp_path / "link").symlink_to("in")
    for file in ("given", "terms"):
        (tmp_path / file).write_text("ka\tnine\n")
    given, terms, output = (tmp_path / file for file in ("given", "terms", name))
    options = ("--score", str(given), f"search.terminology={terms}", "--output", str(output))
    code, _, error = answers(tiny_run, tmp_path, capsys, "ka\n", *options)
    which = {"given": "--score", "terms": "search.terminology"}.get(name, "--input")
    assert code == 2 and f"--output {output}: that is {which}; " in error
    assert (tmp_path / "in").read_text() == "ka\n" and given.read_text() == "ka\tnine\n"
    assert terms.read_text() == "ka\tnine\n"


def test_standard_input_is_not_overwritten(tiny_run, tmp_path):
    file = tmp_path / "in"
    file.write_text("ka\n")
    with file.open() as stream:
        done = tiny.command("translate", tiny_run, "--output", file, stdin=stream)
    assert done.returncode == 2 and "that is standard input" in done.stderr
    assert file.read_text() == "ka\n"
    nothing = ("--output", "/dev/null", "--input", "/dev/null")
    assert tiny.called("translate", tiny_run, *nothing).returncode == 0


def test_packed_input_is_unpacked_and_packed_output_refused(tiny_run, tmp_path, capsys):
    plain = answers(tiny_run, tmp_path, capsys, "ka lo\nmi\n")
    packed, given = tmp_path / "in.gz", tmp_path / "given.gz"
    packed.write_bytes(gzip.compress(b"ka lo\nmi\n"))
    given.write_bytes(gzip.compress(b"nine\nten\n"))
    assert translate.main([str(tiny_run), "--input", str(packed)]) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == plain[1]
    code, lines, _ = answers(tiny_run, tmp_path, capsys, "ka\nlo\n", "--score", str(given))
    assert code == 0 and len(lines) == 2
    output = tmp_path / "out.gz"
    code, _, error = answers(tiny_run, tmp_path, capsys, "ka\n", "--output", str(output))
    assert code == 2 and "plain text is written; leave .gz off" in error and not output.exists()


def test_lines_before_the_damage_of_a_packed_file_are_answered(tiny_run, tmp_path, capsys):
    """Of the lines that are translated together, none was."""
    packed = tmp_path / "in.gz"
    with gzip.open(packed, "wb") as stream:
        stream.write(b"ka lo\nmi\n")
        stream.flush()
        stream.write(b"ka\n" * 9)
    packed.write_bytes(packed.read_bytes()[:-12])
    assert translate.main([str(tiny_run), "--input", str(packed)]) == 2
    out, error = capsys.readouterr()
    assert out.splitlines()[:2] == mtplug.load(tiny_run).translate(["ka lo", "mi"])
    assert str(packed) in error and "Traceback" not in error


def test_an_empty_source_is_scored_and_has_nothing_to_align_or_draw(
    tiny_run, tmp_path, capsys, recwarn
):
    pytest.importorskip("matplotlib")
    rows = [{"source": "", "target": "nine"}, {"source": "ka", "target": "nine"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    options = ("--input-format", "jsonl", "--format", "jsonl", "--score", "-",
               "--attention-plot", str(tmp_path / "{line}.png"))  # fmt: skip
    code, lines, _ = answers(tiny_run, tmp_path, capsys, text, *options)
    assert code == 0 and [json.loads(line)["alignment"] for line in lines] == [[], [[0, 0]]]
    assert [file.name for file in tmp_path.glob("*.png")] == ["2.png"]
    assert not [w for w in recwarn if "matplotlib" in w.filename]


def test_alignments_of_words_for_each_line_of_output(tiny_run, tmp_path, capsys):
    from tests import tiny

    sources, targets = zip(*tiny.pairs(30, seed=9), strict=True)
    text = "".join(line + "\n" for line in (*sources, ""))
    links, given = tmp_path / "new" / "links", tmp_path / "given"
    given.write_text("".join(line + "\n" for line in (*targets, "")))
    true = [{(n, n) for n in range(len(line.split()))} for line in (*targets, "")]
    rows = ("--nbest", "2", "--format", "jsonl")
    for options, each in (("--score", str(given)), 1), (("--nbest", "2"), 2), (rows, 1):
        code, lines, _ = answers(
            tiny_run, tmp_path, capsys, text, "--alignment", str(links), *options
        )
        assert code == 0
        found = [
            {tuple(map(int, pair.split("-"))) for pair in line.split()}
            for line in links.read_text().split("\n")[:-1]
        ]
        assert len(found) == len(lines) == each * len(true)
        right = sum(len(a & b) for a, b in zip(found[::each], true, strict=True))
        # The made-up language is translated word by word.
        assert right > 0.9 * max(sum(map(len, true)), sum(map(len, found[::each])))
    code, lines, error = answers(
        tiny_run, tmp_path, capsys, text, "--alignment", str(links), "--output", str(links)
    )
    assert code == 2 and f"--alignment {links}: that is --output" in error


def test_attention_is_drawn_for_the_lines_asked_for(tiny_run, tmp_path, capsys):
    image = pytest.importorskip("matplotlib.image")
    first, each = tmp_path / "new" / "first.png", tmp_path / "line {line}.png"
    for file in (first, each):
        code, lines, _ = answers(
            tiny_run, tmp_path, capsys, "ka lo mi\nka\n", "--attention-plot", str(file)
        )
        assert code == 0 and len(lines) == 2
    pixels = {n: image.imread(tmp_path / f"line {n}.png") for n in (1, 2)}
    assert (image.imread(first) == pixels[1]).all()
    # A quarter of an inch at 150 dots for each of at least two tokens more.
    assert pixels[1].shape[1] > pixels[2].shape[1] + 60


def test_a_format_that_cannot_be_drawn_is_told_before_any_line(tiny_run, tmp_path, capsys):
    file = tmp_path / "a.xyz"
    code, lines, error = answers(tiny_run, tmp_path, capsys, "ka\n", "--attention-plot", str(file))
    assert code == 2 and not lines
    assert f"--attention-plot {file}: unknown format '.xyz'; known: " in error and "svg" in error


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_of_a_file_is_for_terminals(tiny_run, tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    code, lines, error = answers(tiny_run, tmp_path, capsys, "ka\nlo\nmi\n", "--chunk", "2")
    assert code == 0 and len(lines) == 3
    assert ("100%" in error and "3 lines" in error) if terminal else error == ""


@pytest.mark.parametrize("search", ["search.name=greedy", "search.name=diverse_beam"])
def test_a_wish_that_the_search_cannot_take_is_the_error_of_its_line(
    tiny_run, tmp_path, capsys, search
):
    rows = [
        {"source": "ka"},
        {"source": "lo", "required": ["ten"]},
        {"source": "mi", "prefix": "ten"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    options = ("--input-format", "jsonl", "--format", "jsonl", search)
    code, lines, error = answers(tiny_run, tmp_path, capsys, text, *options)
    found = [json.loads(line) for line in lines]
    assert code == 2 and len(found) == 3
    assert found[0]["text"] == mtplug.load(tiny_run, overrides=[search]).translate(["ka"])[0]
    assert "cannot promise required phrases; use search.name=beam" in found[1]["error"]
    assert found[2]["text"].startswith("ten")
    assert "1 line (2): not translated" in error


def test_a_refused_wish_and_a_line_that_is_too_long_leave_the_answers_before(
    tiny_run, tmp_path, capsys
):
    """The search refuses what stands before the long line only once that is out of the way: all answers were lost."""
    rows = [{"source": "ka"}, {"source": "lo", "required": ["ten"]}, {"source": "ka " * 20}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    options = ("--input-format", "jsonl", "--format", "jsonl", "search.name=greedy",
               "data.on_long=error", "data.max_length=10")  # fmt: skip
    code, lines, error = answers(tiny_run, tmp_path, capsys, text, *options)
    found = [json.loads(line) for line in lines]
    assert code == 2 and len(found) == 2
    assert found[0]["text"] and "required phrases" in found[1]["error"]
    assert "1 line (2): not translated" in error  # was told only by a command that came to its end
    assert "line 3 has 20 tokens" in error


def test_an_error_that_is_no_line_s_ends_the_command(tiny_run, tmp_path, capsys):
    text = json.dumps({"source": "ka", "prefix": "ten"}) + '\n{"source": "lo"}\n'
    options = ("--input-format", "jsonl", "search.language_model=nowhere")
    code, lines, error = answers(tiny_run, tmp_path, capsys, text, *options)
    assert code == 2 and not lines and "nowhere" in error and "not translated" not in error
