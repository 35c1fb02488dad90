"""`load()` imports torchvision even where its extension does not fit the installed torch."""

from niwaki.networks.torchvision_cpu import load

__all__ = ["load"]
