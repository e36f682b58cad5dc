"""The groups of a run's configuration. Fields that hold components are checked against the
dataclass that the chosen component registered. What is not `free` decides a run's result."""

from dataclasses import dataclass, field
from math import inf

from mtplug.registry import (
    Selected,
    choice,
    component_field,
    component_list_field,
    entries_field,
    free,
    require_fraction,
    require_range,
)


@dataclass
class FilterConfig:
    """Which pairs of the training data are dropped before tokenizer and store see them; by default none."""

    min_length: int = 0
    """shortest side that is kept, in `unit`"""
    max_length: int = 0
    """longest side that is kept, in `unit`; 0: any. data.max_length counts tokens instead"""
    max_ratio: float = 0.0
    """how many times longer than the other one a side may be, in `unit`; 0: any"""
    unit: str = choice("words", "characters")
    """what lengths are counted in: words between blanks, or characters, for languages without blanks"""
    copies: bool = False
    """drop pairs whose sides are equal"""
    script: float = 0.0
    """least share of a side's letters that are of its language's scripts, such as 0.5; 0: any"""
    source_scripts: list[str] = field(default_factory=list)
    """scripts of the source, such as [Han, Hiragana, Katakana]; empty: those of the language"""
    target_scripts: list[str] = field(default_factory=list)
    """scripts of the target; empty: those of the language"""
    duplicates: bool = False
    """drop pairs that came before in the same corpus; memory: 12 to 24 bytes for each pair"""

    def __post_init__(self) -> None:
        if min(self.min_length, self.max_length) < 0:
            raise ValueError("min_length and max_length must not be negative")
        if self.max_length and self.max_length < self.min_length:
            raise ValueError(f"max_length {self.max_length} is below min_length {self.min_length}")
        if self.max_ratio and not self.max_ratio >= 1:
            raise ValueError(f"max_ratio must be 0 (any) or at least 1, not {self.max_ratio}")
        require_range(self, 0, 1, "script")


@dataclass
class DataConfig:
    """What is read, and what happens to lines that don't fit."""

    root: str = free("")
    """folder that relative corpus paths start from; empty: the current one"""
    train: list[Selected] = component_list_field("corpora", "text")
    """training corpora, each with a `weight`"""
    valid: list[Selected] = component_list_field("corpora", "text")
    """validation corpora"""
    test: list[Selected] = free(component_list_field("corpora", "text"))
    """test corpora, scored when training ends"""
    max_length: int = 256
    """longest sentence, in tokens of either side"""
    on_long: str = choice("skip", "error", "truncate", "split")
    """what happens to longer ones, which are counted; `split` cuts both sides into the same number of pieces, after
    sentences or between words"""
    on_error: str = choice("error", "skip")
    """what happens to lines that are not valid UTF-8; skipped ones are counted"""
    filters: FilterConfig = field(default_factory=FilterConfig)
    """which pairs of the training data are dropped"""
    workers: int = free(0)
    """processes that tokenise, and that cut text anew for `tokenizer.sampling`; 0: one for each core"""
    temperature: float = 1.0
    """T in p ∝ (weight · sentences)^(1/T), the probability of a corpus; above 1, small corpora are seen more"""
    store: bool = True
    """false: no binary store; the corpora are read and tokenised anew in each epoch"""
    pool: int = 262_144
    """sentence pairs in memory at a time, which are shuffled and grouped by length together; corpora of at most
    this size are shuffled as a whole, larger ones in blocks of up to 256 neighbouring pairs"""

    def __post_init__(self) -> None:
        require_range(self, 1, inf, "max_length", "pool")
        require_range(self, 0, inf, "workers")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")


@dataclass
class InitFromConfig:
    """Weights of another run that a training starts from."""

    path: str = ""
    """a run (its best checkpoint), the folder of a checkpoint, or a file of safetensors"""
    parameters: str = "*"
    """patterns of this model's names, separated by blanks, that are taken; the rest starts fresh"""
    rename: dict[str, str] = field(default_factory=dict)
    """prefixes of this model's names, each with the prefix that stands for it in the checkpoint"""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("'path' is missing: which run or checkpoint?")


@dataclass
class FreezeConfig:
    """Parameters that are frozen, for a while or for good."""

    parameters: str = ""
    """patterns of names, separated by blanks, such as `encoder.* encoder_embedding.*`"""
    until: int = 0
    """last update at which they are frozen; 0: for good"""
    since: int = 1
    """first update at which they are frozen"""

    def __post_init__(self) -> None:
        if not self.parameters.split():
            raise ValueError("'parameters' is missing: which ones?")
        if self.since < 1 or (self.until and self.until < self.since):
            raise ValueError(f"no update is from {self.since} until {self.until}")


@dataclass
class TrainingConfig:
    """The training loop."""

    finetune_from: str = free("")
    """a run, or the folder of one of its checkpoints, whose tokenizer, architecture and weights this run goes
    on with; with `peft`, only the adapter is saved"""
    init_from: list[InitFromConfig] = entries_field("path")
    """runs or checkpoints whose weights a new run starts from, the later ones over the earlier; a text
    is short for `{path: text}`"""
    freeze: list[FreezeConfig] = entries_field("parameters")
    """parameters that stay as they are, for good or until an update; a text is short for `{parameters: text}`"""
    max_updates: int = free(100_000)
    """optimizer steps after which training ends"""
    max_epochs: int = free(0)
    """passes over the training data after which training ends; 0: no limit"""
    max_minutes: float = free(0.0)
    """minutes of training, all resumed parts together, after which it ends; 0: no limit"""
    max_tokens: int = free(4096)
    """size of a batch: sentences times the longest of them, on the longer side, padding included"""
    packing: bool = False
    """batches without padding: sentences one after another in one row; `max_tokens` then counts
    real tokens of the longer side"""
    max_sentences: int = free(0)
    """most sentences of a batch, if `max_tokens` allow them; 0: no limit"""
    accumulate: int = free(1)
    """batches whose gradients make one update"""
    clip_norm: float = 1.0
    """greatest norm of the gradient; 0: not clipped"""
    precision: str = choice("fp32", "auto", "bf16", "fp16")
    """bf16, fp16: automatic mixed precision, weights stay fp32; fp16 with a scaled loss; auto: bf16
    on devices with instructions for it, else fp32"""
    parallel: str = free(choice("ddp", "fsdp"))
    """under torchrun: each process holds the whole model, or (fsdp) a share of it"""
    ema_decay: float = 0.0
    """decay of an exponential moving average of the weights, such as 0.9999, which is then used to validate
    and translate; at update t at most (1 + t) / (10 + t); 0: none"""
    activation_checkpointing: bool = free(False)
    """compute each layer twice instead of keeping what is inside it: less memory, more time"""
    compile: bool = free(False)
    """torch.compile the model and its loss; the first updates take long"""
    device: str = free("auto")
    """auto, cpu, cuda or cuda:N"""
    threads: int = free(0)
    """CPU threads; 0: as torch chooses"""
    log_every: int = free(50)
    """updates between two entries of metrics.jsonl"""

    def __post_init__(self) -> None:
        require_range(self, 1, inf, "max_updates", "max_tokens", "accumulate", "log_every")
        require_range(
            self, 0, inf, "max_epochs", "max_minutes", "max_sentences", "clip_norm", "threads"
        )
        require_fraction(self, "ema_decay")


@dataclass
class ValidationConfig:
    """Loss and scores of real translations of the validation set."""

    every_updates: int = 0
    """updates between two validations; 0: at the end of each epoch"""
    translate: bool = True
    """translate the validation set and score it; false: only the loss"""
    search: Selected = component_field("search_strategies", "greedy")
    """how it is translated; the test set is always translated with the run's `search`"""
    max_sentences: int = 0
    """translate only so many sentences, evenly spread; 0: all"""
    metrics: list[Selected] = component_list_field("metrics", "bleu", preset=("bleu", "chrf"))
    """what translations are scored with, in validation and test; each corpus is scored in its own language, and of
    several validation corpora the mean counts"""
    best_metric: str = "bleu"
    """what `best` is chosen by: a metric's label, loss or perplexity"""
    patience: int = free(0)
    """training stops after so many validations without an improvement; 0: never"""
    batch_tokens: int = free(8192)
    """size of a batch in validation, as `training.max_tokens`"""

    def __post_init__(self) -> None:
        require_range(self, 0, inf, "every_updates", "max_sentences", "patience")
        require_range(self, 1, inf, "batch_tokens")


@dataclass
class CheckpointConfig:
    """What is kept on disk."""

    every_updates: int = 0
    """updates between two checkpoints; 0: at each validation"""
    every_minutes: float = 30.0
    """minutes after which one is saved where none was, only to go on from: it is no candidate for `best`, is not averaged
    and is removed by the next; 0: never"""
    keep_last: int = 5
    """checkpoints kept, besides the best"""
    average_last: int = 0
    """average the weights of the last so many checkpoints when training ends; 0: don't"""
    export_check: str | list[str] = field(default_factory=list)
    """formats, such as ctranslate2, that the model is to be exported to; a model that they do not support is an
    error when training starts"""

    def __post_init__(self) -> None:
        require_range(self, 0, inf, "every_updates", "every_minutes", "average_last")
        require_range(self, 1, inf, "keep_last")
        if isinstance(self.export_check, str):
            self.export_check = self.export_check.replace(",", " ").split()


@dataclass
class LoggingConfig:
    """Where the run's events are reported."""

    trackers: list[Selected] = component_list_field(
        "trackers", "jsonl", preset=("jsonl", "console", "curves", "report")
    )
    """receivers of events"""
    samples: int = 10
    """translations of the validation set written to samples/ at each validation"""

    def __post_init__(self) -> None:
        require_range(self, 0, inf, "samples")


@dataclass
class RunConfig:
    """A run. `mtplug-train CONFIG key.sub=value` sets any of these."""

    run_dir: str = free("")
    """the run's folder; empty: runs/NAME after the configuration file"""
    seed: int = 1
    """decides initial weights, order of data and dropout"""
    task: Selected = component_field("tasks", "translation")
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: Selected = component_field("tokenizers", "sentencepiece")
    architecture: Selected = component_field("architectures", "transformer")
    criterion: Selected = component_field("criteria", "label_smoothed_cross_entropy")
    optimizer: Selected = component_field("optimizers", "adam")
    lr_scheduler: Selected = component_field("lr_schedulers", "inverse_sqrt")
    peft: Selected | None = component_field("peft_methods", None)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = free(field(default_factory=CheckpointConfig))
    logging: LoggingConfig = free(field(default_factory=LoggingConfig))
    search: Selected = free(component_field("search_strategies", "beam"))

    def __post_init__(self) -> None:
        require_range(self, 0, 2**32 - 1, "seed")  # what numpy takes
