"""`niwaki inspect`: any source of networks, what it says, what it draws, and one sentence for whatever goes wrong."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import niwaki
from niwaki.cli import inspect_model as inspecting
from niwaki.cli import inspect_tables
from niwaki.cli.app import app
from niwaki.cli.inputs import as_call, parse_inputs
from niwaki.cli.inspect_model import Request, inspect_model
from niwaki.errors import RunError
from niwaki.networks import NetworkRequest, example_network
from niwaki.report import dot
from niwaki.report.dot import dot_text
from niwaki.report.drawing import FORMATS, drawing
from niwaki.report.inspection import group_figures, reasons
from niwaki.report.page import html_page

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(self.norm(self.a(x))[:, :4])

class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.a(x).view(-1, 4, 2).flatten(1))

class Branches(nn.Sequential):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def with_inputs():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 6)

def for_images(in_channels, image_size, num_classes):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten(), nn.LazyLinear(num_classes))

def fails():
    raise ValueError("no such luck")
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory with a file of networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    (tmp_path / "net.py").write_text(NET)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *arguments])


def found(*arguments: str) -> dict[str, Any]:
    outcome = run(*arguments, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    content: dict[str, Any] = json.loads(outcome.stdout)
    return content


def llama(**more: Any) -> dict[str, Any]:
    """The content of a config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **more,
    }


# ---------------------------------------------------------------- what it says


def test_tables() -> None:
    outcome = run("resnet", "--check")
    assert outcome.exit_code == 0, outcome.stderr
    for text in (
        "units in 9 groups",
        "2 x stages.*.*.conv1",
        "channels",
        "MACs to keep",
        "75%",
        "50%",
        "25%",
        "minimum",
    ):
        assert text in outcome.stdout, outcome.stdout
    for text in ("Predicted cost, for 1x1x8x8 float32", "chosen by magnitude, on random weights", "Exact for"):
        assert text in outcome.stdout, outcome.stdout
    assert "it is an output of the model" in outcome.stdout
    assert outcome.stderr == ""


def test_json_is_all_there_is() -> None:
    content = found("net.py:with_inputs", "--keep", "0.5")
    assert content["format"] == 1
    assert (content["model"], content["inputs"]) == ("net.py:with_inputs", "2x6 float32")
    assert (content["units"], content["dense"]["params"], content["law"]) == (8, 83, None)
    assert [(group["name"], group["kind"], group["units"]) for group in content["groups"]] == [("0", "features", 8)]
    (prediction,) = content["predictions"]
    assert prediction["cost"]["macs"] <= 0.5 * content["dense"]["macs"]


def test_predictions_are_what_choose_gives() -> None:
    space, content = inspect_model(Request("mlp", shares=(0.5, 0.001)))
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5))
    assert content.predictions[0].cost == space.cost(plan)
    assert (content.predictions[1].cost, content.predictions[1].problem) == (None, "out of reach")


@pytest.mark.parametrize("model", ["net.py:Net", "mlp", "resnet"])
def test_reasons_account_for_every_uncovered_parameter(model: str) -> None:
    request = Request(model, parse_inputs(["2x6"]) if model.startswith("net") else ())
    space, content = inspect_model(request)
    uncovered = round((1 - content.coverage) * content.dense.params)
    costs = [reason.params for reason in content.reasons]
    assert max(costs, default=0) <= uncovered <= sum(costs)
    assert costs == sorted(costs, reverse=True)


def test_what_a_reason_costs_is_what_would_be_open_without_it() -> None:
    """Two linear layers: only the last bias lies in no unit, and the output pins it."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    costs = {reason.text: reason.params for reason in reasons(niwaki.search_space(net, torch.randn(1, 4)))}
    assert costs == {"it is an output of the model": 2, "it meets an input of the model": 0}
    alone = nn.Linear(4, 2)  # every weight is pinned in both of its dimensions
    costs = {reason.text: reason.params for reason in reasons(niwaki.search_space(alone, torch.randn(1, 4)))}
    assert costs == {"it is an output of the model": 10, "it meets an input of the model": 8}


def test_pins_have_source_lines() -> None:
    content = found("net.py:Net", "--input", "2x6")
    lines = [line for reason in content["reasons"] for line in reason["lines"]]
    assert "net.py:11" in lines


def test_blocks_of_features() -> None:
    net = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    kinds = {group.kind for group in group_figures(niwaki.search_space(net, torch.randn(1, 5, 16), allow_inexact=True))}
    assert "features" in kinds


def test_as_graph_what_a_number_keeps_can_leave() -> None:
    assert found("net.py:Views", "--input", "2x6")["units"] == 0
    content = found("net.py:Views", "--input", "2x6", "--as-graph", "--check", "--keep", "0.5", "--draw", "out.html")
    assert (content["units"], content["law"]["holds"]) == (4, True)
    assert content["predictions"][0]["cost"]["params"] == 8 * 7 / 2 + 4 * 3 + 3
    assert found("net.py:Views", "--input", "2x6", "--as-graph", "--meta")["units"] == 4
    outcome = run("net.py:Branches", "--input", "2x6", "--as-graph")
    assert outcome.exit_code == 2 and re.search(r"cannot export the model: .*net.py:\d+: ", outcome.stderr)


def test_inexact_groups_are_named() -> None:
    (tmp := Path("norm.py")).write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)), torch.randn(2, 6)\n"
    )
    assert found(f"{tmp}:net")["units"] == 0
    content = found(f"{tmp}:net", "--allow-inexact")
    assert content["units"] == 8 and content["groups"][0]["inexact"]
    assert "features, inexact" in run(f"{tmp}:net", "--allow-inexact").stdout


def test_structures_are_listed_where_that_is_asked_for() -> None:
    (tmp := Path("branch.py")).write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))\n"
        "    def forward(self, x):\n"
        "        x = self.a(x)\n"
        "        x = x + self.b(x).relu()\n"
        "        return self.d(x + self.c(x).sigmoid())\n"
    )
    assert found(f"{tmp}:Net", "--input", "2x6")["structures"] == []
    content = found(f"{tmp}:Net", "--input", "2x6", "--erase")
    assert [(one["name"], one["refused"] is None) for one in content["structures"]] == [("b", True), ("c", False)]
    text = run(f"{tmp}:Net", "--input", "2x6", "--erase").stdout
    assert "Structures: 1 of 2 can be erased, each by itself" in text and "branch.py:9" in text
    assert "1 cannot: its result is not zero where its weights are" in text


def test_a_broken_law_is_exit_code_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> None:
        raise AssertionError("Random plan 0 (seed 0): first in module 'a'")

    monkeypatch.setattr(inspecting, "check_model", broken)
    outcome = run("mlp", "--check")
    assert outcome.exit_code == 1
    assert "NOT EXACT. Random plan 0 (seed 0): first in module 'a'" in outcome.stdout


# ---------------------------------------------------------------- where networks come from


def test_zoo_models_come_with_their_inputs() -> None:
    shapes = {
        "timm:test_vit": (1, 3, 160, 160),
        "torchvision:mobilenet_v3_small": (1, 3, 224, 224),
        "torchvision:vit_b_32": (1, 3, 224, 224),
        "torchvision:inception_v3": (1, 3, 299, 299),
        "torchvision:lraspp_mobilenet_v3_large": (1, 3, 520, 520),
        "torchvision:r3d_18": (1, 3, 16, 112, 112),
    }
    for name, shape in shapes.items():
        shown = example_network(name, NetworkRequest(), meta=True)
        assert tuple(shown.inputs[0].shape) == shape, name
        assert shown.inputs[0].device.type == "cpu" and next(shown.model.parameters()).is_meta, name
    assert len(example_network("torchvision:raft_small", NetworkRequest(), meta=True).inputs) == 2
    (images,) = example_network("torchvision:ssdlite320_mobilenet_v3_large", NetworkRequest(), meta=True).inputs
    assert [image.shape for image in images] == [(3, 320, 320)]


def test_wishes_reach_the_zoo() -> None:
    wish = NetworkRequest(classes=7, images=(1, (64, 64)))
    for name in ("timm:resnet10t", "timm:test_vit", "resnet"):
        assert example_network(name, wish).model.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 7), name
    assert example_network("torchvision:resnet18", NetworkRequest(7)).model.eval()(torch.zeros(1, 3, 64, 64)).shape == (
        1,
        7,
    )


@pytest.mark.parametrize("name", ["hf:config.json", "hf:LlamaModel/config.json", "hf:.", "hf:LlamaForCausalLM/./"])
def test_transformers_from_a_configuration(name: str) -> None:
    Path("config.json").write_text(json.dumps(llama()))
    content = found(name)
    assert content["inputs"] == "input_ids 1x32 int64"
    assert content["units"] > 0


def test_transformers_inputs_follow_the_configuration() -> None:
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    cases: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
        "ViTModel": ({"model_type": "vit", **vision}, {"pixel_values": (1, 3, 32, 32)}),
        "CLIPModel": (
            {"model_type": "clip", "text_config": {**tower, "vocab_size": 99}, "vision_config": vision},
            {"input_ids": (1, 32), "pixel_values": (1, 3, 32, 32)},
        ),
        "T5Model": (
            {"model_type": "t5", "d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4, "d_kv": 8},
            {"input_ids": (1, 32), "decoder_input_ids": (1, 32)},
        ),
        "WhisperModel": (
            {"model_type": "whisper", "d_model": 48, "max_source_positions": 50, "encoder_layers": 1},
            {"input_features": (1, 80, 100), "decoder_input_ids": (1, 32)},
        ),
    }
    for kind, (settings, shapes) in cases.items():
        Path("config.json").write_text(json.dumps({"architectures": [kind], **settings}))
        shown = example_network("hf:config.json", NetworkRequest(), meta=True)
        assert {name: tuple(value.shape) for name, value in shown.inputs.items()} == shapes, kind
        assert type(shown.model).__name__ == kind


def test_meta_needs_no_memory_for_weights() -> None:
    """Seventy billion parameters, built in seconds."""
    large = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    Path("config.json").write_text(json.dumps(llama(**large, num_key_value_heads=8, vocab_size=128256)))
    shown = example_network("hf:config.json", NetworkRequest(), meta=True)
    assert sum(parameter.numel() for parameter in shown.model.parameters()) > 70e9


def test_inputs_of_factories_are_real() -> None:
    shown = example_network("net.py:with_inputs", NetworkRequest(), meta=True)
    assert next(shown.model.parameters()).is_meta and not shown.inputs.is_meta


def test_named_inputs() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return x * mask

    call = as_call(parse_inputs(["2x3", "mask=2x3:bool"]), Two())
    assert {name: (tuple(value.shape), value.dtype) for name, value in call.items()} == {
        "x": ((2, 3), torch.float32),
        "mask": ((2, 3), torch.bool),
    }
    with pytest.raises(RunError, match="The positional input number 1 is 'x', which is also given by name"):
        as_call(parse_inputs(["2x3", "x=2x3"]), Two())
    with pytest.raises(RunError, match="The positional input number 3 has no name"):
        as_call(parse_inputs(["1", "1", "1", "y=1"]), Two())


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("encoder.layers.encoder_layer_0.mlp", "encoder.layers.encoder_layer_*.mlp"),
        ("layer4.2.conv2", "layer4.*.conv2"),
        ("h.11", "h.*"),
    ],
)
def test_numbers_of_layers_are_folded(name: str, folded: str) -> None:
    assert inspect_tables._NUMBER.sub("*", name) == folded


# ---------------------------------------------------------------- what it draws


class _Reader(HTMLParser):
    """Counts elements and notes whatever a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href") or tag in ("script", "link")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_shows_every_group_and_pin() -> None:
    outcome = run("resnet", "--draw", "out.html")
    assert outcome.exit_code == 0, outcome.stderr
    assert "Drawn to out.html" in outcome.stdout
    page = Path("out.html").read_text()
    reader = _Reader()
    reader.feed(page)
    assert reader.open == [] and reader.loads == []
    space, _ = inspect_model(Request("resnet"))
    assert page.count('<g class="group">') == len(space.groups)
    for group in space.groups:
        assert f"<title>{group.name}: {group.units} channels" in page
    assert "<title>weight dim 0, 10 positions: it is an output of the model\n" in page
    assert page.count('class="pin"') >= len({pin.parameter.rpartition(".")[0] for pin in space.pins})


def test_dot_links_groups_to_what_computes_and_reads_them() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    text = dot_text(drawing(niwaki.search_space(net, torch.randn(1, 4)), 'a "net"'))
    assert re.findall(r"^  (\w+ -> \w+)", text, flags=re.MULTILINE) == ["m0 -> g0", "g0 -> m1"]
    assert r'label="a \"net\": 8 units in 1 group' in text
    assert r'label="0\n8 features"' in text and r"pinned: it is an output of the model\n2 parameters" in text
    assert text.count("{") == text.count("}") == 1


def test_structures_are_drawn() -> None:
    """One that holds two modules, the second of which makes its result, and one inside of it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.second = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            result: torch.Tensor = self.head(x + self.second(y + self.inner(y)))
            return result

    drawn = drawing(niwaki.search_space(Net(), torch.randn(2, 6), erase=True, as_graph=True), "net")
    assert [(one.name, one.blocks, set(one.makes)) for one in drawn.structures] == [
        ("first..second", (0, 1, 2), {2}),
        ("inner", (1,), {1}),
    ]
    assert drawn.summary.endswith("2 structures can be erased, each by itself.")
    page, text = html_page(drawn), dot_text(drawn)
    assert page.count('<g class="group whole">') == 2 and "A dashed line is a structure" in page
    assert re.findall(r"^  (s\d -> m\d)", text, flags=re.MULTILINE) == ["s0 -> m0", "s0 -> m1", "s0 -> m2", "s1 -> m1"]
    assert "A dashed line" not in html_page(drawing(niwaki.search_space(Net(), torch.randn(2, 6)), "net"))


def test_drawings_escape_names() -> None:
    net = nn.Sequential()
    net.add_module('<b>"&', nn.Linear(4, 8))
    net.add_module("last", nn.Linear(8, 2))
    drawn = drawing(niwaki.search_space(net, torch.randn(1, 4)), "<i>")
    assert "<b>" not in html_page(drawn) and "&lt;b&gt;&quot;&amp;" in html_page(drawn)
    assert r'label="<b>\"&\nLinear' in dot_text(drawn)


def test_drawings_without_groups_and_without_pins() -> None:
    empty = drawing(niwaki.search_space(nn.ReLU(), torch.randn(1, 4)), "empty")
    assert "Nothing is pinned." in html_page(empty) and dot_text(empty).endswith("}\n")


def test_svg_is_what_graphviz_makes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "dot"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nread first\necho "<svg>$first</svg>"\ncat > /dev/null\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    outcome = run("mlp", "--draw", "out.svg")
    assert outcome.exit_code == 0, outcome.stderr
    assert Path("out.svg").read_text() == "<svg>digraph niwaki {</svg>\n"


def test_svg_without_graphviz_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dot.shutil, "which", lambda name: None)
    outcome = run("mlp", "--draw", "out.svg")
    assert outcome.exit_code == 2
    assert "needs the program `dot` of Graphviz" in outcome.stderr and "apt install graphviz" in outcome.stderr
    assert not Path("out.svg").exists()


def test_forms_of_drawings() -> None:
    assert sorted(FORMATS) == [".dot", ".html", ".svg"]


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("resnot",),
            "There is no model 'resnot'. Give resnet, mlp, superresnet, unets, cells, supernet, timm:NAME, "
            "torchvision:NAME, hf:CLASS/config.json or",
        ),
        (("resnet", "--input", "3 by 4"), "'3 by 4' is not the shape of an input"),
        (("resnet", "--input", "1x4:int3"), "the types are float32"),
        (("resnet", "--input", "a=1", "--input", "a=2"), "The input 'a' is given twice"),
        (("resnet", "--keep", "half"), "'half' is not a list of fractions"),
        (("resnet", "--keep", "1.5"), "1.5 is not a fraction to keep"),
        (("mlp", "--input", "1x5"), "The model does not run on the example inputs"),
        (("mlp", "--check", "--meta"), "--check computes outputs, and a network on the meta device has no weights"),
        (("mlp", "--draw", "net.png"), "'net.png' is not a name for a drawing. Let it end in .dot or .html or .svg."),
        (("mlp", "--draw", "nowhere/net.dot"), "lies in 'nowhere', which is not a directory"),
        (("net.py:Net",), "The inputs of net.py:Net are not known. Give them with --input"),
        (("net.py:for_images",), "net.py:for_images needs in_channels, which has no default"),
        (("net.py:fails",), "fails() in 'net.py' failed: ValueError: no such luck"),
        (("net.py:absent",), "'net.py' has no function 'absent'"),
        (("nowhere.py:net",), "There is no file 'nowhere.py'"),
        (("hf:nowhere/config.json",), "There is no configuration 'nowhere/config.json'"),
        (("hf:broken.json",), "'broken.json' is not JSON"),
        (
            ("hf:nameless.json",),
            "'nameless.json' names no class under 'architectures'. Name it: hf:CLASS/nameless.json",
        ),
        (("hf:LlamaForCausalLn/nameless.json",), "Did you mean LlamaForCausalLM"),
        (("hf:AutoConfig/nameless.json",), "has no model class 'AutoConfig'"),
        (("hf:foreign.json",), "'foreign.json' is for the model type 'bert', which LlamaForCausalLM does not take"),
        (("hf:wrong.json",), "hf:wrong.json cannot be built: "),
        (("torchvision:resnet19",), "torchvision has no model 'resnet19'. Did you mean"),
        (("timm:resnet18x",), "timm has no model 'resnet18x'. Did you mean"),
    ],
)
def test_one_sentence_and_exit_code_two(arguments: tuple[str, ...], message: str) -> None:
    Path("broken.json").write_text("{")
    Path("nameless.json").write_text("{}")
    Path("foreign.json").write_text(json.dumps(llama(model_type="bert")))
    Path("wrong.json").write_text(json.dumps(llama(hidden_size="wide")))
    outcome = run(*arguments)
    assert outcome.exit_code == 2, outcome.stdout
    assert outcome.stderr.startswith("niwaki: ") and message in outcome.stderr, outcome.stderr
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    assert outcome.stdout == ""


def test_training_refuses_what_can_only_be_inspected() -> None:
    from niwaki.networks import ImageTask, build_model

    with pytest.raises(RunError, match="can be inspected, but `niwaki train` trains networks that take images"):
        build_model("hf:config.json", ImageTask(10, 3, (8, 8)))
    with pytest.raises(RunError, match="torchvision has no model 'fcn_resnet50' for classification"):
        build_model("torchvision:fcn_resnet50", ImageTask(10, 3, (8, 8)))
