"""A callback for the Trainer of Hugging Face transformers."""

from __future__ import annotations

from typing import Any

from niwaki.methods.method import Method


def trainer_callback(trainer: Any, method: Method) -> Any:
    """A ``transformers.TrainerCallback`` that logs ``method.log()`` whenever ``trainer`` logs.

    It calls ``trainer.log``, so that the numbers reach ``trainer.state.log_history`` and whatever ``report_to`` names:
    TensorBoard, W&B, and others.

    Args:
        trainer: the ``transformers.Trainer``; the callback is yet to be added to it.
        method: the method that is attached to its optimizer.

    Example::

        method = niwaki.HESSO(space, trainer.create_optimizer(), budget, schedule)
        trainer.add_callback(niwaki.integrations.trainer_callback(trainer, method))
        trainer.train()
    """
    from transformers import TrainerCallback

    def log(control: Any) -> None:
        if control.should_log:
            trainer.log(method.log())
            control.should_log = True  # trainer.log puts it off, and the trainer's own loss is yet to be logged

    class MethodLog(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            log(control)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            log(control)  # under logging_strategy="epoch"

    return MethodLog()
