"""What one would tell a colleague of a pruned network, and numbers as people say them."""

from __future__ import annotations

from niwaki.performance.measure import Ratio

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def headline(
    macs: tuple[int, int], accuracy: tuple[float | None, float | None] = (None, None), ratio: Ratio | None = None
) -> str:
    """One sentence about a pruned network. ``macs`` and ``accuracy``: of the dense one and the small one, the latter
    where they are known. ``ratio``: the latency of the small one over the dense one; where its middle half holds 1, no
    difference was measured.

    >>> headline((5_000_000, 2_000_000), (0.98, 0.978), Ratio(0.7, 0.69, 0.72))
    '2.5 times fewer MACs, 98.0 → 97.8 % accuracy, 1.4 times as fast'
    >>> headline((100, 100), (None, 0.5), Ratio(1.01, 0.98, 1.2))
    'as many MACs, 50.0 % accuracy, no speed-up measured'
    """
    parts = [f"{times(macs[0] / max(macs[1], 1))} times fewer MACs" if macs[1] < macs[0] else "as many MACs"]
    before, after = accuracy
    if after is not None:
        parts.append(f"{'' if before is None else f'{100 * before:.1f} → '}{100 * after:.1f} % accuracy")
    if ratio is not None:
        parts.append(speed(ratio))
    return ", ".join(parts)


def speed(ratio: Ratio) -> str:
    """A ratio of latencies in words.

    >>> speed(Ratio(2.0, 1.9, 2.1))
    '2.0 times as slow'
    """
    if ratio.upper < 1:
        return f"{times(1 / ratio.median)} times as fast"
    return f"{times(ratio.median)} times as slow" if ratio.lower > 1 else "no speed-up measured"


def times(factor: float) -> str:
    """A factor with two digits that count; near 1, with two decimals.

    >>> times(2.46), times(13.8), times(1.04)
    ('2.5', '14', '1.04')
    """
    return f"{factor:.0f}" if factor >= 10 else f"{factor:.2f}" if factor < 1.1 else f"{factor:.1f}"


def short(number: float) -> str:
    """A number in three digits that count.

    >>> short(5_162_240), short(981), short(30_000_000_000)
    ('5.16 M', '981', '30.0 G')
    """
    for size, unit in _UNITS:
        if number >= size:
            value = number / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{number:,.0f}"
