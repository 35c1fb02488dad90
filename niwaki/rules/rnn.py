"""Follow axes through recurrent layers that run as one kernel. (Where torch unrolls them, the rules of the single steps
suffice.)"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.rules.call import Call, Refused
from niwaki.rules.label import Label
from niwaki.rules.registry import mutant, rule, sample

aten = torch.ops.aten
_LSTM = 2  # the kernel's number for the kind of layer
_STEPS = "a recurrence runs along this dimension"


@rule(aten.mkldnn_rnn_layer.default)
def lstm(call: Call) -> list[Label]:
    """One direction of one layer: steps [T, N, I], weights [4 H, I] and [4 H, H], two biases [4 H], states [N, H].

    A hidden unit owns a row of each of the four stacked gates. With these rows zero the cell's input is tanh(0) = 0: a
    cell state that starts at zero remains zero, and so does the hidden state.
    """
    if call["mode"] != _LSTM:
        raise Refused("niwaki follows only the LSTM of this kernel")
    x, hidden, cell = call["input"], call["hx_"], call["cx_"]
    inputs, recurrent = call["weight0"], call["weight1"]
    call.derived_by_torch("hidden_size")
    call.pin(x.axes[0], _STEPS)
    call.equate(x.axes[1], hidden.axes[0])
    call.equate(x.axes[1], cell.axes[0])
    unit = inputs.axes[0].take(slice(hidden.shape[1]))
    call.equate(hidden.axes[1], unit)
    call.equate(cell.axes[1], unit)
    stacked = [inputs, recurrent, *([call["weight2"], call["weight3"]] if call["has_biases"] else [])]
    for tensor in stacked:
        for gate in range(4):
            start = gate * unit.size
            call.equate(tensor.axes[0].take(slice(start, start + unit.size)), unit)
    zero = cell.zero[1] and all(tensor.zero[0] for tensor in stacked)
    state = call.label(hidden.axes, (False, zero and hidden.zero[1]))  # what the recurrent weight ever meets
    call.contract(x, 2, inputs, 1)
    call.contract(state, 1, recurrent, 1)
    call.macs(1, *x.axes[:2], *inputs.axes)
    call.macs(1, *x.axes[:2], *recurrent.axes)
    steps = call.label((*x.axes[:2], unit), (False, False, zero))
    last = [call.label((x.axes[1], unit), (False, zero), output=output) for output in (1, 2)]
    return [steps, *last, *(call.opaque(output) for output in range(3, len(call.shapes)))]


@rule(aten._pack_padded_sequence.default)
def packed(call: Call) -> list[Label]:
    """Sequences [N, T, *], or [T, N, *], as one tensor without padding [sum of lengths, *], and the number of sequences
    at each step. The features are kept."""
    x: Label = call["input"]
    for axis in x.axes[:2]:
        call.pin(axis, "sequences are packed along this dimension")
    steps = call.fixed(call.shapes[0][0], "sequences are packed along this dimension")
    return [call.label((steps, *x.axes[2:]), (False, *x.zero[2:])), call.opaque(1)]


class _Packed(nn.Module):
    """Three sequences of four steps of five features, of lengths 4, 2 and 1."""

    def __init__(self, first: bool, bent: bool = False) -> None:
        super().__init__()
        self.x, self.w = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(5, 2))
        self.first, self.bent = first, bent

    def forward(self) -> tuple[Tensor, Tensor]:
        x = self.x.sigmoid() if self.bent else self.x * 2
        lengths = torch.tensor([4, 2, 1] if self.first else [3, 3, 2, 1])
        data, sizes = torch.ops.aten._pack_padded_sequence(x, lengths, self.first)
        if int(sizes.sum()) != (7 if self.first else 9):
            raise ValueError("a step is missing")
        return data * 3, data @ self.w


for _first in (True, False):
    sample(packed)(lambda first=_first: _Packed(first))
    sample(packed)(lambda first=_first: _Packed(first, bent=True))


@mutant(packed)
def _packed_features_are_new(call: Call) -> list[Label]:
    right = packed(call)
    return [call.label((right[0].axes[0], *(call.fresh(axis.size) for axis in right[0].axes[1:]))), right[1]]


@mutant(packed)
def _packed_is_zero(call: Call) -> list[Label]:
    right = packed(call)
    return [call.label(right[0].axes, [True] * len(right[0].axes)), right[1]]


@mutant(packed)
def _steps_may_go(call: Call) -> list[Label]:
    x: Label = call["input"]
    return [call.label((call.fixed(call.shapes[0][0]), *x.axes[2:])), call.opaque(1)]


class _Recurrent(nn.Module):
    """One layer of 5 hidden units on 3 steps of 2 samples of 4 inputs. The kernel wants float32. What is named in
    ``bent`` is not zero where units are removed; what follows is what the kernel gives."""

    def __init__(self, *bent: str, biased: bool = True, reverse: bool = False) -> None:
        super().__init__()
        self.x, self.h, self.c = (nn.Parameter(torch.randn(*shape)) for shape in ((3, 2, 4), (2, 5), (2, 5)))
        self.w, self.u = nn.Parameter(torch.randn(20, 4)), nn.Parameter(torch.randn(20, 5))
        self.a, self.b = nn.Parameter(torch.randn(20)), nn.Parameter(torch.randn(20))
        self.bent, self.biased, self.reverse = bent, biased, reverse

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        x, w, u, a, b, h, c = (self._given(name).float() for name in ("x", "w", "u", "a", "b", "h", "c"))
        units, rows = len(h.T), (w, u, a, b) if self.biased else (w, u)
        fits = len(w.T) == len(x.transpose(0, 2)) and len(u.T) == len(c.T) == units
        fits = fits and len(x.transpose(0, 1)) == len(h) == len(c)
        if not fits or any(len(tensor) != 4 * units for tensor in rows):  # the kernel itself would read past the end
            raise ValueError("the shapes do not fit")
        sizes = (2, units, 1)
        made = torch.ops.aten.mkldnn_rnn_layer(
            x, w, u, a, b, h, c, self.reverse, (), *sizes, self.biased, False, False, False
        )
        return made[0], made[1], made[2]

    def _given(self, name: str) -> Tensor:
        given: Tensor = getattr(self, name)
        return given.sigmoid() if name in self.bent else given


for _bent in ((), ("x",), ("w",), ("u",), ("a",), ("h",), ("c",), ("u", "h"), ("x", "w"), ("u", "c")):
    sample(lstm, tolerance=1e-5)(lambda bent=_bent: _Recurrent(*bent))
sample(lstm, tolerance=1e-5)(lambda: _Recurrent("b", reverse=True))
sample(lstm, tolerance=1e-5)(lambda: _Recurrent("a", biased=False))


@mutant(lstm)
def _always_zero(call: Call) -> list[Label]:
    return [call.label(x.axes, [True] * len(x.axes), output=output) for output, x in enumerate(lstm(call))]


@mutant(lstm)
def _of_another_gate(call: Call) -> list[Label]:
    right = lstm(call)
    units = call["hx_"].shape[1]
    other = call["weight0"].axes[0].take(slice(None, units)).take(slice(None, None, -1))
    return [call.label((*x.axes[:-1], other), x.zero, output=output) for output, x in enumerate(right)]


@mutant(lstm)
def _gates_are_interleaved(call: Call) -> list[Label]:
    x, hidden = call["input"], call["hx_"]
    unit, gates = call.split(call["weight0"].axes[0], (hidden.shape[1], 4))
    for name in ("weight1", "weight2", "weight3"):
        call.equate(call["weight0"].axes[0], call[name].axes[0])
    call.pin(gates, "")
    call.derived_by_torch("hidden_size")
    call.equate(hidden.axes[1], unit)
    call.equate(call["cx_"].axes[1], unit)
    call.contract(x, 2, call["weight0"], 1)
    call.contract(hidden, 1, call["weight1"], 1)
    return [call.label((*x.axes[:2], unit)), *(call.label((x.axes[1], unit), output=i) for i in (1, 2))]
