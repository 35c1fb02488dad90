"""Least-squares compensation: new weights with which the remaining units best reproduce the output of a layer.

Units are seldom independent, so other weights for the remaining inputs restore a part of a layer's lost output (Pruning
with Compensation, arXiv:2108.13728). Layers are fitted in the order of the network, each on its inputs in the cut
network: errors of earlier layers are repaired, while fits on the inputs of the dense network would add them up. The
passes of all batches halt at a layer, it is fitted, and they go on, so that depth costs no further passes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.core.describe import new_weights
from niwaki.core.edits.base import ReplacingEdit
from niwaki.core.edits.keep import Keep
from niwaki.core.edits.new_bias import NewBias, can_have_bias, output_dim
from niwaki.core.names import module_at, named_parameters
from niwaki.core.plan import Plan
from niwaki.core.scalars import is_number, is_whole
from niwaki.core.space import SearchSpace, check_space
from niwaki.errors import MethodError, TraceError
from niwaki.repair.calibration import Forward, feed
from niwaki.repair.consumers import reading_maps
from niwaki.repair.fittable import fitted_layers, no_layers
from niwaki.repair.linear_maps import LinearMap, of_its_own
from niwaki.repair.norms_behind import NormsBehind
from niwaki.repair.passes import Pass, Pick, closing_all
from niwaki.repair.regression import Regression
from niwaki.repair.sampling import rows
from niwaki.repair.waiting import Made, Store
from niwaki.surgery.cut import cut_module, duplicate
from niwaki.surgery.history import check_plan
from niwaki.trace.eager import eagerly
from niwaki.trace.model_state import preserved

_PART = 256  # entries of an output by which two passes are compared


@dataclass(frozen=True, slots=True)
class Fit:
    """Relative error of a layer's output in the cut network, as a fraction of the power of the dense output: with the
    old weights (``before``) and with the new ones (``after``). Earlier layers have their new weights in both. Measured
    on the positions of the fit; infinite where the dense output is the same at all of them and that of the cut network
    is another. ``norm``: the BatchNorm whose running mean took up the shift of a layer without a bias; None if there is
    none, or the layer has a bias. ``centred``: whether one of both, or a new bias, took up the shift; otherwise the fit
    is about zero, and what the lost inputs gave on average is missing as far as the others cannot give it."""

    before: float
    after: float
    norm: str | None = None
    centred: bool = True

    def __str__(self) -> str:
        told = [f"{error:.2%}" if math.isfinite(error) else "infinite" for error in (self.after, self.before)]
        return f"{told[0]} ({told[1]} without repair{'' if told[1] != 'infinite' else ': its output is constant'})"


@dataclass(frozen=True, slots=True, eq=False)
class Compensated:
    """The result of `compensate`. ``model``: a dense copy, ready for `niwaki.cut`. ``layers``: those with new weights.
    ``left``: the layers and tensors that lose inputs without new weights, each with the reason. ``plan``: the plan of
    the cut, with the ``new_biases`` that were asked for."""

    model: nn.Module
    layers: Mapping[str, Fit]
    left: Mapping[str, str]
    plan: Plan

    def __str__(self) -> str:
        lines = [f"{new_weights(len(self.layers))} Relative error of each layer's output:"]
        lines += [f"  {name}: {fit}" for name, fit in self.layers.items()]
        if about_zero := [name for name, fit in self.layers.items() if not fit.centred]:
            lines.append(f"  about zero, without a bias or a norm behind for a shift: {', '.join(about_zero)}")
        if biases := [edit.module for edit in self.plan.edits_of(NewBias)]:
            lines.append(f"  with a new bias, in the plan: {', '.join(biases)}")
        return "\n".join([*lines, *(f"  not {name}: {why}" for name, why in self.left.items())])


@eagerly()
def compensate(
    space: SearchSpace,
    plan: Plan,
    batches: Iterable[Any],
    *,
    ridge: float | None = None,
    positions: int = 32_768,
    forward: Forward | None = None,
    new_biases: bool = False,
) -> Compensated:
    """Give the layers that read removed units the weights with which the remaining units best reproduce their outputs.

    Layers are fitted in the order of the network. For a layer W x + b, with x its input in the dense network and y its
    input in the cut one (where earlier layers have their new weights), over positions of all batches,

        minimise over D, d:  E |W x - (W_S + D) y - d|^2 + ridge * mean(diag C_yy) |D|^2;   W_S += D, b += d

    W_S being the weights of the remaining inputs, C a covariance. Without a bias the shift d goes into the running mean
    of the BatchNorm that alone reads the layer, which changes nothing else (OB2C, arXiv:2608.17657); without such a
    norm d is 0 and C not centred, and ``Fit.centred`` says so; or, with ``new_biases``, a linear layer or convolution
    gets a bias, by an edit of ``Compensated.plan``. Networks run in eval mode.

    Layers are linear ones, convolutions and transposed ones, grouped and depthwise ones by groups, what recurrent
    layers and cells read, the projections of `torch.nn.MultiheadAttention`, and any layer that multiplies by its only
    matrix, as GPT-2's do (which is tried on the batches). Others, and hidden states inside of a recurrent
    layer, are in ``Compensated.left``. In a grouped convolution the groups that stay are fitted, although what they
    read is whole, since errors of earlier layers reach them.

    The norms behind repaired layers need no `niwaki.reestimate_norms`: their means are right, and the variance that the
    repaired output lacks is what it does not know of the dense one. Scaled up to the full variance it would be wrong by
    more.

    The cost: a pass of the dense network over the data to find the order, then one of the dense and one of the cut
    network, whatever the depth; and two more, each up to it, for a layer that a batch calls several times. Besides, for
    a layer with S remaining inputs and O outputs, ``positions`` * S * (S + O) multiplications. All passes stand at the
    same layer at once, each holding what it needs to go on: in memory up to half of what the operators of a pass over
    one batch give in all, about half of what a training step takes, and the rest in a temporary file (of a GPU, in the
    memory of the host), whatever the number of batches. Where the code keeps something of a pass in a buffer or a
    global variable, which passes in turns would mix, each layer takes passes of its own. Each pass has a thread: code
    must not hold a lock while it calls layers, since who waits for it would wait for ever; nor a view of a tensor
    that it exchanged by DLPack, whose memory may move meanwhile (arrays of numpy are safe).

    Args:
        space: the search space of the model, which is not changed.
        plan: the plan of the cut.
        batches: inputs, which are all held; a tensor or tuple is passed by position, a dict by keywords. A few hundred
            images do.
        ridge: the penalty on changes of the weights, relative to the mean power of an input; above 0. By default each
            layer has that of 1e-5 to 1e-1 whose fit on three quarters of the positions is best on the last.
        positions: at most so many of a layer's positions (a sample of a linear layer, a place of a feature map) are
            used, drawn evenly from all batches; 1 or more.
        forward: how to run the model on any other batch: ``lambda model, batch: model(batch[0])``.
        new_biases: let layers have biases that they did not have. The cut network has the class that it had, and some
            parameters more, which a configuration of Hugging Face cannot say.

    The cut of ``Compensated.model`` by the same plan has the new weights, and it is exact as that of any model; removed
    units keep their old weights until then. Weights that the data do not determine are not changed.

    Raises:
        PlanError: the plan is for another network, or is not a plan.
        MethodError: there are no batches, or ``ridge`` or ``positions`` is no such number.
        TraceError: the model does not run on a batch, or has no values (on the meta device).

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        >>> x = torch.randn(200, 4)
        >>> space = niwaki.search_space(net, x)
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> made = niwaki.compensate(space, plan, [x])
        >>> made.layers["2"].after < made.layers["2"].before
        True
        >>> small = niwaki.cut(made.model, plan)
    """
    check_space(space)
    if new_biases is not True and new_biases is not False:
        raise MethodError(f"new_biases={new_biases!r} must be True or False.")
    if ridge is not None and (not is_number(ridge) or not 0 < ridge < float("inf")):
        raise MethodError(f"ridge={ridge!r} must be a number above 0, such as 1e-3, or None.")
    if not is_whole(positions) or positions < 1:
        raise MethodError(f"positions={positions!r} must be a whole number, 1 or more.")
    check_plan(plan)
    plan.check_fits(space.model)
    if any(parameter.is_meta for parameter in space.model.parameters()):
        raise TraceError("The model is on the meta device, where it has no weights to change. Move it first.")
    model = duplicate(space.model)
    readers = reading_maps(space, plan, model)
    left = no_layers(space, plan, model, readers)
    replaced = {edit.module for edit in plan.edits if isinstance(edit, ReplacingEdit)}
    data, reading = list(batches), fitted_layers(model, readers, replaced, left)

    def run(*, together: bool) -> Compensated:
        repair, missed = _Repair(plan, model, reading, data, forward, together, new_biases), dict[str, str]()
        with preserved(model):
            layers = repair.run(None if ridge is None else float(ridge), int(positions), missed)
        return Compensated(repair.made, layers, left | missed, plan.with_edits(repair.biases))

    try:
        return run(together=True)
    except _MixedError:
        return run(together=False)


_PickOne = Callable[[tuple[Any, ...], Mapping[str, Any], Any], Tensor]


class _MixedError(Exception):
    """Passes that halt in turns are not what each is alone: the code keeps something of a pass where all passes see
    it."""


class _Repair:
    """One run: the dense ``model``, the dense copy with new weights ``made``, and the cut network ``small``."""

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        readers: Mapping[str, Sequence[LinearMap]],
        batches: Sequence[Any],
        forward: Forward | None,
        together: bool,
        new_biases: bool,
    ) -> None:
        self._together, self._new_biases = together, new_biases
        self.biases: list[NewBias] = []  # that layers got
        self._alone: dict[tuple[str, int], list[list[Tensor]]] = {}  # a part of what each call gave, by layer and batch
        self._plan, self._model, self._batches, self._forward = plan, model, batches, forward
        self._activations = 0  # bytes that a pass of one batch takes, if nothing of it is freed
        self._readers = {name: list(maps) for name, maps in readers.items()}
        self._names = {id(parameter): name for name, parameter in named_parameters(model)}
        self.made, self._small = duplicate(model), cut_module(model, plan)

    def run(self, ridge: float | None, positions: int, left: dict[str, str]) -> dict[str, Fit]:
        """Fit all layers; those which cannot be go to ``left``, with the reason."""
        for module in (*self._model.modules(), *self._small.modules()):
            module.training = False
        calls, behind = self._watched(left)
        for name in self._readers if self._new_biases else ():
            self._prepare_bias(name, behind)
        once = [name for name, counts in calls.items() if max(counts) == 1] if self._together else []
        layers: dict[str, Fit] = {}
        passes: list[Pass] = []
        store = Store(self._activations // 2)
        with contextlib.closing(store), closing_all(passes):
            pairs = [self._pair(once, number, passes, store) for number in range(len(self._batches) if once else 0)]
            for name in (*calls, *(name for name in self._readers if name not in calls)):
                sums = [Regression() for _ in self._readers[name]]
                counts = calls.get(name, [0] * len(self._batches))
                try:
                    for number, count in enumerate(counts):
                        share = -(-positions // sum(counts)) if count else 0
                        if name in once:
                            self._add(sums, name, pairs[number], count, share, number)
                            for standing in pairs[number]:
                                standing.rest()
                        elif count:
                            own: list[Pass] = []
                            with closing_all(own):
                                again = self._pair([name], number, own, store)
                                self._add(sums, name, again, count, share, number)
                except ValueError as why:
                    left.update({one.title(name): str(why) for one in self._readers[name]})
                    continue
                for one, moments in zip(self._readers[name], sums, strict=True):
                    try:
                        layers[one.title(name)] = self._fit(name, one, moments, ridge, behind.get(name))
                    except ValueError as why:
                        left[one.title(name)] = str(why)
        return layers

    def _watched(self, left: dict[str, str]) -> tuple[dict[str, list[int]], dict[str, str]]:
        """The number of calls of each layer by each batch, in the order of the first calls; and the norms behind layers
        without a bias. Layers that turn out not to be what their maps say go to ``left``."""
        calls: dict[str, list[int]] = {}
        layers = {name: maps[0].called for name, maps in self._readers.items()}
        watch = NormsBehind(
            self._model, {name: one for name, one in layers.items() if not self._readers[name][0].inside}
        )
        failed: dict[LinearMap, str] = {}
        number = 0

        def note(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            calls.setdefault(name, [0] * len(self._batches))[number] += 1
            parts: list[Tensor] = []
            for one in self._readers[name]:
                try:
                    parts.append(_part(one.given(args, kwargs, output)).clone())
                    if one.tried and not one.holds(args, kwargs, output):
                        failed[one] = of_its_own(one.layer)
                except ValueError as why:
                    failed[one] = str(why)
            self._alone.setdefault((name, number), []).append(parts)
            if isinstance(output, Tensor):
                watch.note(name, output)

        with contextlib.ExitStack() as stack:
            for name, layer in reversed(list(layers.items())):  # of hooks on one module the last comes first
                handle = layer.register_forward_hook(
                    lambda _, args, kwargs, output, name=name: note(name, args, kwargs, output),
                    prepend=True,
                    with_kwargs=True,
                )
                stack.callback(handle.remove)
            stack.callback(self._model.register_forward_hook(lambda _, args, result: watch.returned(result)).remove)
            for number, batch in enumerate(self._batches):
                with watch, Made() as made:
                    feed(self._model, [batch], self._forward, number + 1)
                watch.forget()
                self._activations = max(self._activations, made.bytes)
            if not self._batches:
                feed(self._model, [], self._forward)
        self._drop(failed, calls, left)
        replaced = {edit.module for edit in self._plan.edits if isinstance(edit, ReplacingEdit)}
        return calls, {layer: norm for layer, norm in watch.found().items() if norm not in replaced}

    def _drop(self, failed: Mapping[LinearMap, str], calls: dict[str, list[int]], left: dict[str, str]) -> None:
        """Leave out the maps that ``failed``; of the two that a square matrix may be, one may be right."""
        for name, maps in list(self._readers.items()):
            right = [one for one in maps if one not in failed]
            if len(right) == len(maps):
                continue
            for one in maps:
                if one in failed and not (one.tried and right):
                    left[one.title(name)] = failed[one]
            for number in range(len(self._batches)):
                parts = self._alone.get((name, number), [])
                parts[:] = [[part for part, one in zip(call, maps, strict=False) if one in right] for call in parts]
            self._readers[name] = right
            if not right:
                del self._readers[name]
                calls.pop(name, None)

    def _pair(self, names: Sequence[str], number: int, passes: list[Pass], store: Store) -> tuple[Pass, Pass]:
        """A pass of the dense network, for outputs, and one of the cut network, for inputs; added to ``passes``."""
        batch, forward = self._batches[number], self._forward
        given = {name: _picking([one.given for one in self._readers[name]]) for name in names}
        read = {name: _picking([self._reading(name, one) for one in self._readers[name]]) for name in names}
        called = {name: _path(name, self._readers[name][0]) for name in names}
        passes.append(dense := Pass(self._model, given, batch, forward, number + 1, True, store, called))
        passes.append(small := Pass(self._small, read, batch, forward, number + 1, False, store, called))
        return dense, small

    def _prepare_bias(self, name: str, behind: Mapping[str, str]) -> None:
        """Give a layer of the cut network a bias of zeros, before the passes copy its modules."""
        small = module_at(self._small, name)
        if name not in behind and self._readers[name][0].attention is None and can_have_bias(small):
            outputs = small.get_parameter("weight").shape[output_dim(small)]
            small._parameters["bias"] = nn.Parameter(small.get_parameter("weight").new_zeros(outputs))

    def _reading(self, name: str, one: LinearMap) -> _PickOne:
        """What a layer reads in the cut network."""
        if one.attention is not None:
            there = module_at(self._small, _path(name, one))
            assert isinstance(there, nn.MultiheadAttention)
            one = replace(one, attention=there)
        return lambda args, kwargs, output: one.read(args, kwargs)

    def _add(
        self, sums: Sequence[Regression], name: str, pair: tuple[Pass, Pass], count: int, most: int, seed: int
    ) -> None:
        outputs, inputs = (one.take(name, count) for one in pair)
        for call, alone in zip(outputs, self._alone[name, seed], strict=False):
            if self._together and not all(map(_alike, map(_part, call), alone)):
                raise _MixedError
        for number, one in enumerate(self._readers[name]):
            small, (groups, _) = one.counterpart(module_at(self._small, name)), one.stay(self._plan, self._name(one))
            for output, given in zip(outputs, inputs, strict=True):
                for piece in rows(one, small, groups, output[number], given[number], most, seed):
                    sums[number].add(*piece)

    def _fit(self, name: str, one: LinearMap, sums: Regression, ridge: float | None, norm: str | None) -> Fit:
        """Change the weights of a map, in ``made`` and in the cut network.

        Raises:
            ValueError: why they are not changed.
        """
        if sums.empty:
            raise ValueError("no batch reached it as a layer of its own")
        layer = module_at(self.made, name)
        made, (groups, stay) = one.counterpart(layer), one.stay(self._plan, self._name(one))
        found = sums.moments()
        if not found.finite:
            raise ValueError("what it reads is not finite")
        matrix = made.matrix()
        places = torch.tensor(stay, device=matrix.device)[:, None, :, None]  # [groups, 1, inputs, 1]
        places = places.expand(-1, matrix.shape[1], -1, matrix.shape[3])
        fewer = matrix[groups].gather(2, places).flatten(2)
        norm = norm if made.sums.bias is None else None
        small = module_at(self._small, name)
        new = small._parameters.get("bias") if made.sums.bias is None and not one.inside else None
        centred = made.sums.bias is not None or norm is not None or new is not None
        used = found if centred else found.plain
        before = used.share(found.plain.lost(fewer), found.plain.whole)
        fewer = used.fitted(fewer, sums.ridge(fewer, centred) if ridge is None else ridge)
        shift = matrix.new_zeros(matrix.shape[:2])
        shift[groups] = found.z - (fewer @ found.y.unsqueeze(2)).squeeze(2)
        with torch.no_grad():
            matrix[groups] = matrix[groups].scatter(2, places, fewer.reshape(places.shape))
            made.write(matrix)
            changed = [f"{name}.{part}" for part, _ in named_parameters(layer)]
            if made.sums.bias is not None:
                made.add_to_bias(shift.flatten())
            elif norm is not None:
                module_at(self.made, norm).get_buffer("running_mean").sub_(shift.flatten())
                changed.append(f"{norm}.running_mean")
            elif new is not None:
                self.biases.append(edit := self._bias(name, layer, shift.flatten()))
                new.copy_(new.new_tensor(edit.value))
            for tensor in changed:
                _tensor(self._small, tensor).copy_(self._plan.change_of(tensor).of(_tensor(self.made, tensor)))
        return Fit(before, used.share(used.lost(fewer), found.plain.whole), norm, centred)

    def _bias(self, name: str, layer: nn.Module, shift: Tensor) -> NewBias:
        """The edit that adds ``shift`` [outputs of the dense layer] to those that stay."""
        dim = output_dim(layer)
        keep = self._plan.at.get(("keep", f"{name}.weight", dim))
        rows = keep.kept if isinstance(keep, Keep) else range(len(shift))
        value = shift.to(layer.get_parameter("weight").dtype)[list(rows)]
        return NewBias(name, rows, tuple(value.tolist()), dim)

    def _name(self, one: LinearMap) -> str:
        return self._names[id(one.sums.weight)]


def _picking(each: Sequence[_PickOne]) -> Pick:
    """What several maps of a layer need of a call."""
    return lambda args, kwargs, output: tuple(one(args, kwargs, output) for one in each)


def _path(name: str, one: LinearMap) -> str:
    """Where the module is that is called, of the layer with this ``name``."""
    return name if one.attention is None else name.rpartition(".")[0]


def _part(output: Tensor) -> Tensor:
    """Some entries, evenly spread."""
    flat = output.detach().flatten()
    return flat[:: -(-len(flat) // _PART) or 1]


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether they differ by no more than roundings."""
    if one.shape != other.shape:
        return False
    near = torch.finfo(one.dtype).eps ** 0.5 * float(other.abs().nan_to_num().max()) if len(one) else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=near, equal_nan=True)


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, own = name.rpartition(".")
    tensor: Tensor = getattr(module_at(model, path), own)
    return tensor
