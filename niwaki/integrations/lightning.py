"""A callback for Lightning."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from niwaki.errors import MethodError
from niwaki.methods.method import Method

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def lightning_callback(method: Callable[[], Method]) -> Any:
    """A Lightning ``Callback`` that logs ``method.log()`` after every batch; Lightning's loggers keep what
    ``log_every_n_steps`` says.

    Args:
        method: returns the method, which a module makes in ``setup`` as a rule, after the callback.

    Raises:
        MethodError: Lightning is not installed.

    Example::

        callback = niwaki.integrations.lightning_callback(lambda: module.method)
        trainer = lightning.Trainer(callbacks=[callback])
    """
    kind = _callback_class()

    class MethodLog(kind):  # type: ignore[misc, valid-type]
        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            module.log_dict(method().log())

    return MethodLog()


def _callback_class() -> Any:
    """The base class, of whichever of its two names Lightning is installed under."""
    for package in _PACKAGES:
        try:
            return importlib.import_module(package).Callback
        except ImportError:
            continue
    raise MethodError("Lightning is not installed: pip install lightning.")
