"""Lifecycle hooks: note the highest loss since a run was started or resumed, and stop one that falls apart."""

import mtplug

LIMIT = 100.0  # nats per token; a uniform guess among 32,000 tokens has 10.4


@mtplug.hookimpl
def on_train_start(trainer):
    trainer.highest_loss = 0.0


@mtplug.hookimpl
def on_update_end(trainer, update, loss):
    trainer.highest_loss = max(trainer.highest_loss, loss)
    if loss > LIMIT:
        trainer.should_stop = f"NAME: the loss of update {update} is {loss:.0f}"


@mtplug.hookimpl
def on_validation_end(trainer, scores):
    scores["highest_loss"] = trainer.highest_loss


@mtplug.hookimpl
def on_train_end(trainer, reason):
    text = f"{reason}; highest loss {trainer.highest_loss:.3f}\n"
    (trainer.run_dir / "NAME.txt").write_text(text)
