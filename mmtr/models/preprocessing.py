"""What the data preprocessors of mmseg, mmdet and mmpretrain do to pixels, which each says under another name."""

from torch import nn


def turns_to_rgb(preprocessor: nn.Module, channels: int) -> bool:
    """Tell whether a data preprocessor swaps the first and the last of so many channels: of three alone."""
    names = ('channel_conversion', '_channel_conversion', 'to_rgb')
    return channels == 3 and any(getattr(preprocessor, name, False) for name in names)
