"""Peak signal-to-noise ratios in words."""

import math


def decibels(psnr: float, digits: int = 1) -> str:
    """A ratio in dB with so many digits behind the point; "exact" where nothing differs, as of a solid picture.

    >>> decibels(40.25), decibels(-0.01), decibels(math.inf)
    ('40.2', '0.0', 'exact')
    """
    return "exact" if psnr == math.inf else f"{round(psnr, digits) + 0.0:.{digits}f}"  # no -0.0
