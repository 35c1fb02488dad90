"""The divergence from a teacher."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.errors import MethodError


class Net(nn.Module):
    """Its dropout would show if it ran in train mode."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.into, self.drop, self.out = nn.Linear(4, width), nn.Dropout(0.5), nn.Linear(width, 3)

    def forward(self, x: Tensor, tuple_too: bool = False) -> Tensor:
        result: Tensor = self.out(self.drop(self.into(x).relu()))
        return result


@pytest.fixture
def pair() -> tuple[Net, Net, Tensor]:
    torch.manual_seed(0)
    return Net(), Net(), torch.randn(5, 7, 4)


def test_it_is_the_divergence_by_its_formula(pair: tuple[Net, Net, Tensor]) -> None:
    teacher, student, x = pair
    student.eval()
    found = niwaki.distillation(teacher, temperature=2.0)(student, (x, "labels"))
    with torch.no_grad():
        p, q = (F.softmax(net.eval()(x) / 2, -1) for net in (teacher, student))
    expected = 4 * (p * (p.log() - q.log())).sum(-1).mean()
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-5)
    one = niwaki.distillation(teacher, temperature=2.0)(student, x[0, 0])
    assert float(one.detach()) == pytest.approx(float(4 * (p * (p.log() - q.log())).sum(-1)[0, 0]), rel=1e-4)
    hidden = niwaki.distillation(teacher, temperature=2.0, hidden={"into": 0.25})(student, x)
    with torch.no_grad():
        here, there = student.into(x), teacher.into(x)
        more = 0.25 * (here - there).square().mean() / there.square().mean()
    assert float((hidden - found).detach()) == pytest.approx(float(more), rel=1e-4)


def test_the_teacher_is_evaluated_learns_nothing_and_is_left_as_it_was(pair: tuple[Net, Net, Tensor]) -> None:
    teacher, student, x = pair
    teacher.train()
    teacher.drop.eval()
    distil = niwaki.distillation(teacher, hidden=["into"])
    loss = distil(student, x)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert teacher.training and not teacher.drop.training and not teacher.into._forward_hooks
    assert not isinstance(distil, nn.Module)
    student.load_state_dict(teacher.state_dict())
    assert float(distil(student.eval(), x).detach()) == pytest.approx(0.0, abs=1e-6)


def test_outputs_with_logits_and_batches_with_names(pair: tuple[Net, Net, Tensor]) -> None:
    teacher, student, x = pair
    student.eval()
    plain = niwaki.distillation(teacher)(student, x)
    assert torch.equal(niwaki.distillation(teacher)(student, {"x": x}), plain)
    wrapped = niwaki.distillation(teacher, lambda model, batch: SimpleNamespace(logits=model(batch)))(student, x)
    assert torch.equal(wrapped, plain)


def test_a_pruned_network_learns_from_the_dense_one() -> None:
    torch.manual_seed(0)
    dense, x = Net(32).eval(), torch.randn(256, 4)
    space = niwaki.search_space(dense, x)
    small = niwaki.cut(dense, niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5)))
    distil, optimizer = niwaki.distillation(dense), torch.optim.Adam(small.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = distil(small, x)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_wrong_inputs_get_sentences(pair: tuple[Net, Net, Tensor]) -> None:
    teacher, student, x = pair
    with pytest.raises(MethodError, match="The teacher is a str, but must be the dense network, a module"):
        niwaki.distillation("teacher")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="temperature=0 must be a number above 0"):
        niwaki.distillation(teacher, temperature=0)
    with pytest.raises(MethodError, match=r"hidden\['into'\]=-1 must be a number above 0"):
        niwaki.distillation(teacher, hidden={"into": -1})
    with pytest.raises(MethodError, match="The parameter 'into.weight' is the teacher's, too, .* copy.deepcopy"):
        niwaki.distillation(teacher)(teacher, x)
    with pytest.raises(MethodError, match="There is no module 'onto' in a Net, which hidden= names"):
        niwaki.distillation(teacher, hidden=["onto"])(student, x)
    with pytest.raises(MethodError, match=r"hidden='into' gives a tensor of shape \[5, 7, 6\] in the model and a tens"):
        niwaki.distillation(teacher, hidden=["into"])(Net(6), x)
    with pytest.raises(MethodError, match="The Net returns a tuple, which is not and has no tensor of logits"):
        niwaki.distillation(teacher, lambda model, batch: (model(batch),))(student, x)
    with pytest.raises(
        MethodError, match="The Net does not run on a batch: .* or inputs and labels in this order; for"
    ):
        niwaki.distillation(teacher)(student, (torch.tensor([1, 2]), x))
    other = copy.deepcopy(student)
    other.out = nn.Linear(8, 4)
    with pytest.raises(MethodError, match=r"The model's logits have the shape \[5, 7, 4\], the teacher's \[5, 7, 3\]"):
        niwaki.distillation(teacher)(other, x)
    single = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    copied, x = copy.deepcopy(single), torch.randn(3, 4)
    with pytest.raises(MethodError, match=r"one number per sample, of shape \[3, 1\], whose softmax is 1 whatever it"):
        niwaki.distillation(single)(copied, x)
    assert niwaki.distillation(single, lambda model, batch: F.pad(model(batch), (1, 0)))(copied, x) == 0
