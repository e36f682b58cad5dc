"""What is translated together, and who is told what when it fails; no server is needed for that."""

import threading
import time

import pytest
from mtplug_server.batching import Full, Job, Settings, Worker

import mtplug
from mtplug.search import Wishes
from mtplug.translator import Translation


class Slow:
    """A translator whose calls wait for `gate`, which is open when a block with it ends; it keeps what it is asked."""

    def __init__(self, window=1):
        self.window, self.calls = window, []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.target_lang = self.source_lang = ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.gate.set()

    def nbest(self, texts, **how):
        self.calls.append((texts, self.target_lang, how))
        self.entered.set()
        assert self.gate.wait(60)
        if "bad" in texts:
            raise mtplug.UserError("a bad text")
        if "broken" in texts:
            raise RuntimeError("broken: a secret")
        return [[Translation(text.upper(), 0.0, [], [], True)] for text in texts]


def busy(**settings):
    """A worker in the middle of a call, and its translator: whatever comes now has to wait."""
    translator = Slow(settings.pop("window", 1))
    worker = Worker(translator, **settings)
    first = worker.submit(Job(["first"]))
    assert translator.entered.wait(60)
    return worker, translator, first


def found(future):
    return [row[0].text for row in future.result(60)]


def test_what_waits_together_is_one_call_and_each_gets_its_own():
    worker, translator, first = busy()
    futures = [worker.submit(Job([f"a{n}", f"b{n}"])) for n in range(10)]
    assert worker.waiting == 20
    translator.gate.set()
    assert found(first) == ["FIRST"]
    assert [found(f) for f in futures] == [[f"A{n}", f"B{n}"] for n in range(10)]
    assert [len(texts) for texts, *_ in translator.calls] == [1, 20]
    assert worker.waiting == 0


def test_the_first_waits_for_others():
    """With an idle worker, too: both would be calls of their own otherwise."""
    translator = Slow()
    translator.gate.set()
    worker = Worker(translator, linger=30, batch=2)  # complete, it does not wait any longer
    begun = time.monotonic()
    one = worker.submit(Job(["one"]))
    assert not translator.entered.wait(0.2)
    assert found(worker.submit(Job(["two"]))) == ["TWO"] and found(one) == ["ONE"]
    assert [texts for texts, *_ in translator.calls] == [["one", "two"]]
    assert time.monotonic() - begun < 20


def test_a_batch_ends_where_it_is_full_and_nobody_overtakes():
    worker, translator, _ = busy(batch=4)
    sizes = [3, 2, 1, 9, 1]
    futures = [worker.submit(Job([f"{n}"] * size)) for n, size in enumerate(sizes)]
    translator.gate.set()
    assert [len(found(f)) for f in futures] == sizes
    assert [texts for texts, *_ in translator.calls[1:]] == [
        ["0"] * 3, ["1"] * 2 + ["2"], ["3"] * 9, ["4"],
    ]  # fmt: skip


def test_only_equal_settings_go_together():
    worker, translator, _ = busy()
    german, beam = Settings("de"), Settings(search=(("beam", 2),))
    wish = Wishes(required=["x"])
    jobs = [
        Job(["a"], german),
        Job(["b"], beam),
        Job(["c"], german, wish),
        Job(["d"], beam, None, "x"),
    ]
    futures = [worker.submit(job) for job in jobs]
    translator.gate.set()
    assert [found(f) for f in futures] == [["A"], ["B"], ["C"], ["D"]]
    (texts, language, how), (other, none, searched) = translator.calls[1:]
    assert (texts, language, how["wishes"]) == (["a", "c"], "de", [None, wish])
    assert "adapters" not in how and searched["adapters"] == ["", "x"]
    assert (other, none, searched["beam"], searched["wishes"]) == (["b", "d"], "", 2, None)


@pytest.mark.parametrize(("text", "error"), [("bad", mtplug.UserError), ("broken", RuntimeError)])
def test_a_bad_request_does_not_spoil_its_neighbours(text, error, capsys):
    worker, translator, _ = busy()
    futures = [worker.submit(Job([one])) for one in ("good", text, "better")]
    translator.gate.set()
    assert found(futures[0]) == ["GOOD"] and found(futures[2]) == ["BETTER"]
    with pytest.raises(error):
        futures[1].result(60)
    said = capsys.readouterr().err
    assert "secret" not in said  # a message may hold what was asked
    assert said.startswith("mtplug-serve: RuntimeError (test_batching.py:") is (text == "broken")


def test_there_is_room_for_so_many():
    worker, translator, _ = busy(room=3)
    kept = worker.submit(Job(["a", "b"]))
    with pytest.raises(Full):
        worker.submit(Job(["c", "d"]))
    last = worker.submit(Job(["e"]))
    translator.gate.set()
    assert found(kept) == ["A", "B"] and found(last) == ["E"]
    assert found(worker.submit(Job(["c", "d"]))) == ["C", "D"]  # there is room again


def test_documents_of_two_requests_stay_apart():
    """Sentences are translated with their neighbours; those of a stranger are none."""
    worker, translator, _ = busy(window=4)
    futures = [worker.submit(Job(texts)) for texts in (["a", "b"], ["c"], ["d", "", "e"])]
    translator.gate.set()
    assert [found(f) for f in futures] == [["A", "B"], ["C"], ["D", "", "E"]]
    assert translator.calls[1][0] == ["a", "b", "", "c", "", "d", "", "e"]


def test_errors_of_real_texts_are_of_the_request_that_holds_them(mtplug_run):
    translator = mtplug.load(mtplug_run, device="cpu", overrides=["data.on_long=error"])
    expected = translator.translate(["ka lo", "mi"])
    worker = Worker(translator, linger=30, batch=4)
    futures = [worker.submit(Job(t)) for t in (["ka lo"], ["nu", "lo " * 300], ["mi"])]
    assert found(futures[0]) + found(futures[2]) == expected
    with pytest.raises(mtplug.UserError, match=r"sentence 2 has 3\d\d tokens"):
        futures[1].result(60)
