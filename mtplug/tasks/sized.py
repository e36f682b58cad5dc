"""Stand-ins for a task whose data was not read: enough to build a model with."""


class Sized:
    """Stands for a tokenizer that is not there: only its size matters."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size


class SizedTask:
    """Stands for a task with one vocabulary for both languages; enough to build a Transformer with."""

    def __init__(self, size: int):
        self.source_tokenizer = self.target_tokenizer = Sized(size)
