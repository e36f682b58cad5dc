"""The plugin contract: every hook that mtplug calls, and nothing else.

A plugin is a module (or object) named by an entry point of group `mtplug`; it implements any of
these functions, decorated with `@mtplug.hookimpl`, naming only the arguments that it uses. Hooks grow
by added arguments only.

Each `register_*` hook receives `register(name, factory, config=None)`: a name unique within the
kind, what builds the component, and the dataclass of its settings. What the factory of each kind
is called with is stated in `docs/plugins.md`.
"""

import pluggy

hookspec = pluggy.HookspecMarker("mtplug")

RENAMED: dict[str, str] = {}
"""Hooks that have a new name: an implementation of the old one is called as the new one, with a warning."""

# --- components: one hook for each kind -------------------------------------------------------


@hookspec
def register_architectures(register):
    """Models. `factory(config, task) -> mtplug.architectures.Model`."""


@hookspec
def register_criteria(register):
    """Training losses. `factory(config, task)`, called as `criterion(model, batch) -> Loss`.

    A factory may have `check_files(config)`: called before any work, it raises `UserError` for a missing file.

    A criterion may have `begin_update(update)`: called in each process before each update with its number, counted
    from 1, for what changes in the course of training. Validation finds it as the last update left it.

    A criterion may have `fit(batches)`: called in each process of a run before its updates, resumed or not, with an
    iterator of the training batches from the first one on, on the run's device.

    The parameters of a criterion that is an `nn.Module` are trained with the model's, by the same optimizer. What
    `state_dict()` of a criterion gives, module or not, is in checkpoints (tensors, what JSON knows, and dictionaries
    of both) and comes back by `load_state_dict(state)`, with tensors on the CPU: before the first call, and to undo
    the trial of the largest batch. It is no part of the model. What is there again by itself, such as a teacher that
    was read from its run, does not belong there: keep it out of the module (an attribute `[teacher]`, a buffer with
    `persistent=False`) or out of `state_dict`. Numbers that are to be seen beside the loss are `Loss.parts`."""


@hookspec
def register_tasks(register):
    """What is learnt from which data. `factory(config) -> mtplug.tasks.Task`."""


@hookspec
def register_peft_methods(register):
    """Parameter-efficient fine-tuning. `factory(config)`, called as `method.apply(model)`.

    A method may have `fit(model, batches, criterion)`: called once before the first update of a run, on the model
    that the method was applied to, with an iterator of training batches on its device, the same in all processes."""


@hookspec
def register_position_encodings(register):
    """Position encodings. `factory(config, stack) -> mtplug.nn.positions.PositionEncoding`."""


@hookspec
def register_attention_backends(register):
    """Attention. `factory(config) -> mtplug.nn.attention.AttentionBackend`.

    A configuration chooses a backend by its name alone: it is made with the defaults of its settings.
    """


@hookspec
def register_tokenizers(register):
    """Text to ids and back. `factory(config) -> mtplug.data.tokenizers.Tokenizer`.

    A factory may have `check_files(config)`, as those of criteria, and `unfit(texts)`, which is called before any work
    as `Tokenizer.unfit` is afterwards: it returns what is wrong with the text of a corpus, and the run is refused. What the factory makes
    may have `size(side)`: how many ids that side's tokenizer will have, at most; 0 where only the text will tell.
    Models are sized by it that are checked before there is a tokenizer, as in a dry run. Where the settings have a
    `sample_size` above 0, its `train` is given so many texts, at most, drawn from all over all corpora.

    A tokenizer whose text has to be written in a certain way raises `UserError` in `encode`; who called it says of which
    line. What metrics and glossaries are to read of such text is its `plain(text)`. If its ids are for certain models only,
    the factory's static method `why_not(config, model)`, as those of criteria, tells what is wrong with another.

    A tokenizer whose vocabulary has symbols of languages already names them as `languages`: with `task.language_tags`, no symbols
    are added then, source texts begin with the tag of both languages, and `directed` gives the tokenizer that reads it."""


@hookspec
def register_corpora(register):
    """Readers of raw corpora. `factory(config, languages) -> mtplug.data.corpora.Corpus`.

    The dataclass derives from `mtplug.data.corpora.CorpusConfig`, and is that one where none is given. A factory may have
    `check_files(config)`, as those of criteria, which tells before any work what is soon found in training corpora."""


@hookspec
def register_optimizers(register):
    """Optimizers. `factory(config, parameters) -> torch.optim.Optimizer`.

    One that cannot work on shares of weights (training.parallel=fsdp) has `needs_whole_weights = True`."""


@hookspec
def register_lr_schedulers(register):
    """Schedules. `factory(config, max_updates)`, called as `schedule(update) -> factor`.

    One may have `validated(better)`, called after each validation, and then `state()` and `restore(state)`."""


@hookspec
def register_search_strategies(register):
    """Decoding. `factory(config) -> mtplug.search.SearchStrategy`.

    One that mixes something into the model's probabilities makes that model in `searched_model(model, task)`, by which given
    translations are scored too. `check_files(config)` is called before a training, and before the first search or score
    of a translator. `of_pieces` says which hypotheses of the pieces of a text that was split go together."""


@hookspec
def register_metrics(register):
    """Scores of translations. `factory(config, target_lang) -> mtplug.evaluation.Metric`."""


@hookspec
def register_trackers(register):
    """Receivers of a run's events. `factory(config, run_dir) -> mtplug.training.Tracker`.

    One that raises at an event is reported, and the run goes on without it, unless it has `essential = True`. Plugins
    tell their own by `trainer.emit(kind, …)`: a `note` with `text` is shown; a kind of their own is in metrics.jsonl."""


@hookspec
def register_exporters(register):
    """Other formats. `factory(config)`, called as `exporter.export(translator, path)`; an exporter may
    also say which models it does not support, search with what it wrote, and import, or only import
    (`mtplug.exporting`)."""


@hookspec
def register_benchmarks(register):
    """Benchmark suites. `factory(config)`, called as `suite.run() -> list[dict]`.

    What else a suite may have: `conditions() -> dict`, asked after `run`, of what a reader needs beside the rows; `left_out`,
    a list of lines that say what was not measured and why; `plot(rows, file)` for `--plot`; a setting
    `peers: list[str]`, which `--peers` sets to `[all]`; `stopped`, true if Ctrl-C ended `run` early (exit status 130).
    """


@hookspec
def register_kinds(register):
    """New kinds. `register("scorers", help)` makes a registry that others fill by `register_scorers`."""


# --- the life of a run ------------------------------------------------------------------------
#
# A plugin that raises here is reported with its name, once for each hook, and the run goes on. It ends
# the run by `trainer.should_stop = "why"` (after this update, as if training were complete) or by
# raising `mtplug.StopRun("why")` (at once, with exit status 1; the last checkpoint stays).


@hookspec
def on_train_start(trainer):
    """Before the first update of this process (so again after a resume)."""


@hookspec
def on_update_end(trainer, update, loss):
    """After each optimizer step; `loss` is its mean, usually in nats per target token."""


@hookspec
def on_validation_end(trainer, update, scores):
    """After each validation; `scores` maps metric names to numbers, and numbers may be added to it."""


@hookspec
def on_checkpoint_saved(trainer, path):
    """After a checkpoint has appeared whole under `path`."""


@hookspec
def on_train_end(trainer, reason):
    """After the last update; `reason` says what ended the training."""
