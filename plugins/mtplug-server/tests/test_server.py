"""Requests over HTTP, to a server in this process and to the command."""

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from mtplug_server.__main__ import _served, main
from mtplug_server.api import Api, Model
from mtplug_server.batching import Worker
from mtplug_server.server import Server
from test_batching import Slow

import mtplug
from mtplug import testing
from mtplug.cli import translate
from mtplug.translator import Translation

LINES = ["ka lo mi", "nu", "pe ra so ti", "", "vu we ka", "  lo\tlo "]


@contextlib.contextmanager
def serving(models, max_body=2**16, log=False):
    server = Server(("127.0.0.1", 0), max_body, log)
    server.server_bind()
    server.routes = Api(models, max_beam=8).routes()
    server.server_activate()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.finish()


@pytest.fixture(scope="module")
def server(mtplug_run):
    worker = Worker(mtplug.load(mtplug_run, device="cpu"), linger=0)
    with serving({"tiny": Model(worker, {"name": "tiny"})}) as made:
        yield made


def ask(server, path, body=None, method=None):
    """(status, value of the answer, headers) of one request; a body that is no bytes is sent as JSON."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    port = server if isinstance(server, int) else server.server_port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method or ("GET" if body is None else "POST"), path, body)
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if data else None, answer.headers


def test_translations_are_those_of_mtplug_translate(server, mtplug_run, tmp_path, capsys):
    (tmp_path / "in").write_text("".join(line + "\n" for line in LINES))
    options = ["--beam", "4", "--nbest", "2", "--format", "jsonl", "--input", str(tmp_path / "in")]
    assert translate.main([str(mtplug_run), *options, "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    status, answer, _ = ask(server, "/translate", {"text": LINES, "beam": 4, "nbest": 2})
    assert status == 200 and answer["run"] == "tiny"
    fields = ("text", "score", "finished")
    for entry, line in zip(answer["translations"], lines, strict=True):
        assert [entry[f] for f in fields] == [line[f] for f in fields]
        assert [[t[f] for f in fields] for t in entry["nbest"]] == [
            [t[f] for f in fields] for t in line["nbest"]
        ]

    # Texts of their own requests, which may share batches, are translated alike.
    with ThreadPoolExecutor(len(LINES)) as pool:
        alone = pool.map(lambda t: ask(server, "/translate", {"text": t, "beam": 4}), LINES)
    found = [answer["translations"][0] for _, answer, _ in alone]
    assert [t["text"] for t in found] == [line["text"] for line in lines]
    scores = [line["score"] for line in lines]
    assert [t["score"] for t in found] == pytest.approx(scores, abs=1e-5)
    assert "nbest" not in found[0] and "word_alignment" not in found[0]


def test_requests_that_come_together_are_one_call_of_the_translator(mtplug_run):
    translator = mtplug.load(mtplug_run, device="cpu")
    expected = translator.translate(LINES)
    slow, nbest = Slow(), translator.nbest
    translator.nbest = lambda texts, **how: slow.nbest(texts) and nbest(texts, **how)
    with serving({"tiny": Model(Worker(translator, linger=0), {})}) as server:
        with ThreadPoolExecutor(8) as pool, slow:
            first = pool.submit(ask, server, "/translate", {"text": "ka"})
            assert slow.entered.wait(60)
            futures = [pool.submit(ask, server, "/translate", {"text": t}) for t in LINES]
            futures.append(pool.submit(ask, server, "/translate", {"text": 5}))
            until = time.monotonic() + 60
            while ask(server, "/health")[1] != {"status": "ok", "waiting": len(LINES)}:
                assert time.monotonic() < until
            slow.gate.set()
            answers = [f.result(60) for f in futures]
        assert first.result()[0] == 200 and answers.pop()[0] == 400
        assert [a[1]["translations"][0]["text"] for a in answers] == expected
        assert [len(texts) for texts, *_ in slow.calls] == [1, len(LINES)]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "no JSON"),
        (b"\xff\xfe\xfa", 400, "no JSON"),
        (b"[" * 50_000, 400, "no JSON: nested too deeply"),
        ([], 400, "expected"),
        ({}, 400, "text: expected a text or a list of texts"),
        ({"text": None}, 400, "text: expected a text"),
        ({"text": ["ka", 5]}, 400, "text: expected a text"),
        ({"text": "ka", "\ud800": 2}, 400, "unknown key '\ud800'"),
        ({"text": "ka", "nbets": 2}, 400, "unknown key 'nbets'; did you mean 'nbest'?"),
        ({"text": "ka", "terminology": "/etc/passwd"}, 400, "unknown key 'terminology'"),
        ({"text": "ka", "beam": "4"}, 400, "beam: expected a whole number"),
        ({"text": "ka", "beam": True}, 400, "beam: expected a whole number"),
        ({"text": "ka", "beam": 9}, 400, "beam 9: expected 1 to 8"),
        ({"text": "ka", "nbest": 0}, 400, "nbest 0: expected 1 to 8"),
        ({"text": "ka", "beam": 2, "nbest": 3}, 400, "nbest must be from 1 to beam"),
        ({"text": "ka", "alignment": 1}, 400, "alignment: expected true or false"),
        ({"text": "ka", "target_lang": "de"}, 400, "target language de: this run writes en only"),
        ({"text": "ka", "source_lang": 3}, 400, "source_lang: expected a text"),
        ({"text": "ka", "run": "other"}, 400, "run: choose one of tiny"),
        ({"text": "ka", "required": "ten"}, 400, "'required' is no list"),
        ({"text": "ka", "adapter": "legal"}, 400, "no adapter 'legal' is loaded"),
        ({"text": ["ka"] * 2000}, 413, "text: more than 1,024 texts"),
        (b" " * (2**16 + 1), 413, "the body has more than 65,536 bytes"),
    ],
)
def test_bad_requests_are_told_in_one_line(server, body, status, message):
    got, answer, _ = ask(server, "/translate", body)
    assert got == status and list(answer) == ["error"]
    assert message in answer["error"] and "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/translate", 405), ("PUT", "/translate", 405), ("POST", "/health", 405),
     ("BREW", "/health", 501), ("HEAD", "/health", 200), ("GET", "/health?verbose", 200)],
)  # fmt: skip
def test_paths_and_methods(server, method, path, status):
    got, answer, headers = ask(server, path, method=method)
    assert got == status and headers["Content-Type"] == "application/json"
    assert (answer is None) is (method == "HEAD")
    if status == 405:
        assert headers["Allow"] == ("GET" if path == "/health" else "POST")


def test_odd_texts_are_texts(server):
    odd = ["ka \ud800 ü 🙂", "ka\nlo\r\n\n mi", "\x00", "", "<b>ka</b>"]
    status, answer, _ = ask(server, "/translate", {"text": odd, "beam": None})
    assert status == 200 and len(answer["translations"]) == len(odd)
    assert answer["translations"][1]["text"] == "one two three"  # on one line
    assert answer["translations"][3] == {"text": "", "score": 0.0, "finished": True}
    assert ask(server, "/translate", {"text": []})[1] == {"run": "tiny", "translations": []}


def test_wishes_and_alignment(server):
    asked = {"text": ["ka lo", "mi"], "required": ["ten"], "forbidden": ["one"], "alignment": True}
    status, answer, _ = ask(server, "/translate", asked)
    assert status == 200
    for found in answer["translations"]:
        assert "ten" in found["text"].split() and "one" not in found["text"].split()
        assert found["word_alignment"] and all(len(pair) == 2 for pair in found["word_alignment"])


def test_a_connection_goes_on_after_an_error(server):
    """What a refused request had for a body must not be taken for the next request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    with contextlib.closing(connection):
        for path, status in (("/nothing", 404), ("/translate", 400), ("/translate", 200)):
            connection.request("POST", path, b'{"text": "ka"}' if status == 200 else b"GET / no")
            answer = connection.getresponse()
            assert answer.status == status and json.loads(answer.read())
        for method in ("HEAD", "GET"):  # an answer with a body would be taken for the next one
            connection.request(method, "/health")
            answer = connection.getresponse()
            assert answer.status == 200 and bool(answer.read()) is (method == "GET")


def test_a_client_that_sends_far_too_much_is_answered(server):
    """More than any buffer holds: a server that did not read it would reset the connection while the client writes."""
    assert ask(server, "/translate", bytes(2**25))[0] == 413


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (
            b"POST /translate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"a body needs",
        ),
        (b"POST /translate HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"Content-Length: no length"),
        (b"POST /translate HTTP/1.1\r\nContent-Length: 5\r\n\r\n{}", b""),  # and no more
        (b"\x16\x03\x01 no HTTP at all\r\n\r\n", b"error"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"Too Long"),
    ],
)
def test_what_is_hardly_http_harms_nobody(server, raw, told, capsys):
    with socket.create_connection(("127.0.0.1", server.server_port), 60) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        got = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert told in got and bool(got) is bool(told)
    assert ask(server, "/health")[0] == 200
    assert capsys.readouterr().err == ""


def test_opennmts_clients_are_answered_as_they_know_it(server):
    asked = [{"src": "ka lo", "id": 100}, {"src": "mi"}]
    status, answer, _ = ask(server, "/translator/translate", asked)
    (best,) = answer
    assert status == 200 and [t["tgt"] for t in best] == ["one two", "three"]
    assert (best[0]["src"], best[0]["n_best"]) == ("ka lo", 1) and best[0]["pred_score"] < 0
    slow = Slow()
    slow.gate.set()
    row = [Translation(text, -1.0, [], [], True) for text in ("one", "two")]
    slow.nbest = lambda texts, **how: [row if text else row[:1] for text in texts]
    with serving({"tiny": Model(Worker(slow, linger=0), {})}) as other:
        status, answer, _ = ask(other, "/translator/translate", [{"src": "ka"}, {"src": ""}])
    assert [[t["tgt"] for t in of_rank] for of_rank in answer] == [["one", "one"], ["two", "one"]]
    for wrong in ({}, [], [5], [{"src": 5}], [{"text": "ka"}]):
        assert ask(server, "/translator/translate", wrong)[0] == 400


def test_several_runs_are_told_apart():
    slow = {name: Slow() for name in ("1", "de-en")}
    slow["1"].gate.set()
    models = {n: Model(Worker(s, linger=0), {"name": n}, "xx") for n, s in slow.items()}
    with serving(models) as server:
        assert ask(server, "/models")[1] == {"models": [{"name": "1"}, {"name": "de-en"}]}
        assert (
            ask(server, "/translate", {"text": "ka"})[1]["error"] == "run: choose one of 1, de-en"
        )
        mixed = [{"src": "ka", "id": 1}, {"src": "ka", "id": 2}]
        assert ask(server, "/translator/translate", mixed)[0] == 400
        for body in ({"text": "ka", "run": "1", "target_lang": "yy"}, {"text": "ka", "run": "1"}):
            assert ask(server, "/translate", body)[1]["run"] == "1"
        ((one,),) = ask(server, "/translator/translate", [{"src": "lo", "id": 1}])[1]
        assert one == {"src": "lo", "tgt": "LO", "n_best": 1, "pred_score": 0.0}
        assert [call[:2] for call in slow["1"].calls] == [(["ka"], "yy"), (["ka"], "xx"), (["lo"], "xx")]  # fmt: skip
        assert slow["de-en"].calls == []


def test_an_error_that_nobody_foresaw_is_a_500(capsys):
    slow = Slow()
    slow.gate.set()
    with serving({"odd": Model(Worker(slow, linger=0), {})}) as server:
        assert ask(server, "/translate", {"text": "broken"})[0] == 500
        slow.nbest = lambda texts, **how: [[]]  # no translation
        assert ask(server, "/translate", {"text": "ka"})[0] == 500
        assert ask(server, "/health")[0] == 200
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("mtplug-serve: RuntimeError (test_batching.py:")
    assert said[1:] == ["mtplug-serve: IndexError at /translate"]


def test_alignment_of_a_model_that_has_none_is_refused(tmp_path):
    """It was answered without a word about it."""
    run = testing.train(
        tmp_path,
        "task={name: language_modeling, target_lang: en}",
        "data={train: {target: train.en}, valid: {target: valid.en}, test: null, workers: 1}",
        f"data.root={tmp_path}",
        "tokenizer.vocab_size=13",
        "validation.best_metric=loss",
        "architecture={name: transformer_lm, dim: 16, ffn_dim: 16, heads: 2, layers: 1}",
        updates=1,
    )
    args = argparse.Namespace(
        adapter=[], quantization=None, checkpoint="best", device="cpu", backend="", precision="fp32",
        target_lang="", source_lang="", linger=0, batch=64, queue=8, debug=False,
    )  # fmt: skip
    with serving({"tiny": _served("tiny", run, [], args)}) as server:
        status, found, _ = ask(server, "/translate", {"text": "ka", "alignment": True})
        said = "alignment: this run continues its text, which leaves no source to align"
        assert (status, found["error"]) == (400, said)
        assert ask(server, "/translate", {"text": "ka", "alignment": False})[0] == 200


def test_a_full_queue_is_a_503_and_a_stop_answers_what_has_begun(mtplug_run, capsys):
    translator = mtplug.load(mtplug_run, device="cpu")
    slow, nbest = Slow(), translator.nbest
    translator.nbest = lambda texts, **how: slow.nbest(texts) and nbest(texts, **how)
    with (
        serving({"tiny": Model(Worker(translator, linger=0, room=1), {})}, log=True) as server,
        ThreadPoolExecutor(3) as pool,
        contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        ) as kept,
        slow,
    ):
        begun = [pool.submit(ask, server, "/translate", {"text": "ka"})]
        assert slow.entered.wait(60)
        begun.append(pool.submit(ask, server, "/translate?key=secret", {"text": "lo"}))
        until = time.monotonic() + 60
        while ask(server, "/health")[1]["waiting"] != 1:
            assert time.monotonic() < until
        status, _, headers = ask(server, "/translate", {"text": "mi"})
        assert (status, headers["Retry-After"]) == (503, "1")
        kept.request("GET", "/health")
        assert json.loads(kept.getresponse().read())["status"] == "ok"

        stop = pool.submit(server.finish)
        while not server._stopping:
            assert time.monotonic() < until
        kept.request("GET", "/health")
        assert kept.getresponse().status == 503
        assert not stop.done()
        slow.gate.set()
        assert [b.result(60)[1]["translations"][0]["text"] for b in begun] == ["one", "two"]
        stop.result(60)
        with pytest.raises(OSError):
            ask(server, "/health")
        server.finish = lambda: None  # it has
    said = capsys.readouterr().err
    assert re.search(r"127\.0\.0\.1 POST /translate 200 \d+ ms\n", said)
    assert "ka" not in said and "secret" not in said


def test_the_command_serves_and_ends_when_it_is_told(mtplug_run, tmp_path):
    """SIGTERM in the middle of a request, which is still waiting for others to come."""
    command = [sys.executable, "-m", "mtplug_server", f"tiny={mtplug_run}", "search.beam=3", "--port", "0",
               "--device", "cpu", "--linger", "1500"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            told = process.stderr.readline()
            found = re.fullmatch(r"mtplug-serve: http://127\.0\.0\.1:(\d+) serves tiny; Ctrl-C stops it\n", told)  # fmt: skip
            assert found, told
            port = int(found[1])
            (about,) = ask(port, "/models")[1]["models"]
            assert about["name"] == "tiny" and about["search"]["beam"] == 3
            assert (about["source_lang"], about["target_lang"]) == ("xx", "en")
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(ask, port, "/translate", {"text": "ka lo"})
                while ask(port, "/health")[1]["waiting"] != 1:
                    assert not answer.done()
                process.send_signal(signal.SIGTERM)
                assert answer.result(60)[1]["translations"][0]["text"] == "one two"
            assert process.wait(60) == 143
            assert process.stderr.read() == "mtplug-serve: stopped\n"
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist; give the folder that mtplug-train made"),
        (["search.beam=3"], "no run is given, only settings"),
        (["{run}", "{run}"], "give each run a name of its own: NAME="),
        (["{run}", "serch.beam=3"], "unknown key 'serch'; did you mean 'search'?"),
        (["{run}", "search.terminology=nowhere.tsv"], "nowhere.tsv"),
        (
            ["a={run}", "b={run}", "--target-lang", "de"],
            "mtplug-serve: a: target language de: this",
        ),
        (
            ["{run}", "--target-lang", "de"],
            "mtplug-serve: target language de: this run writes en only",
        ),
        (["{run}", "--port", "70000"], "--port 70000: expected a number from 0 to 65535"),
        (["{run}", "--batch", "0"], "--batch 0: must be at least 1"),
        (["{run}", "--linger", "nan"], "--linger nan: expected milliseconds"),
        (["{run}", "--adapter", "x"], "--adapter x: expected NAME=PATH"),
        (["a={run}", "b={run}", "--adapter", "x=y"], "--adapter: adapters are of one base"),
        (["{run}", "--quantization", "int8"], "--quantization needs a --backend"),
        (["{run}", "--host", "no such host"], "--host no such host --port 0: "),
        (["{run}", "--port", "{port}"], "Address already in use"),
    ],
)
def test_a_wrong_command_line_is_one_line(server, mtplug_run, arguments, message, capsys):
    given = [a.format(run=mtplug_run, port=server.server_port) for a in arguments]
    assert main([*(() if "--port" in given else ("--port", "0")), *given]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
