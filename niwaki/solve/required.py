"""Turn the demands of a model's configuration on its sizes into equations that every plan has to fulfil."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from niwaki.core.integrations import Multiple
from niwaki.core.location import Location
from niwaki.core.numbers import Combination, Count, Equation, Literal


def required(
    multiples: Sequence[Multiple], lengths: Mapping[tuple[str, int], int], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Equation[int]]:
    """Yield one equation "the remainder stays 0" for each of ``multiples`` that the dense model fulfils. ``lengths``
    maps the dimensions of parameters to axis numbers. Unlike the numbers in a model's code these equations pin nothing:
    some numbers of units always fulfil them, at least those of the dense model."""
    for rule in multiples:
        sizes = [shapes[name][dim] for name, dim in ((rule.tensor, rule.dim), (rule.of, rule.of_dim))]
        if sizes[1] % rule.per or sizes[0] % (sizes[1] // rule.per):
            continue
        whole, part = Count(lengths[rule.tensor, rule.dim], sizes[0]), Count(lengths[rule.of, rule.of_dim], sizes[1])
        number = Combination("//", part, Literal(rule.per), sizes[1] // rule.per)
        yield Equation(Combination("%", whole, number, 0), None, rule.what, Location("the model's configuration", 0))
