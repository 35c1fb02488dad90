"""Where a method stands, in the logs of trainers that others wrote: a callback for each, around ``method.log()``.

Imports methods. The library of a trainer is imported only when its callback is made.
"""

from niwaki.integrations.hugging_face import trainer_callback
from niwaki.integrations.lightning import lightning_callback

__all__ = ["lightning_callback", "trainer_callback"]
