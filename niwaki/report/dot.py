"""Write a drawing as text for Graphviz, and as SVG if Graphviz is installed."""

from __future__ import annotations

import shutil
import subprocess

from niwaki.errors import NiwakiError
from niwaki.report.drawing import Drawing, PathStop, form


@form(".dot")
def dot_text(drawing: Drawing) -> str:
    """Modules are boxes, groups ellipses; arrows lead from the modules that compute a group's units into it, and out to
    those that read them. Reasons that hold parameters back are notes, and colour the frames of the modules that they
    pin. Structures that can be erased are folders, with dashed lines to what goes with them.

    >>> from niwaki.report.drawing import ModuleNode
    >>> print(dot_text(Drawing("net", "nothing", (ModuleNode("conv1", "Conv2d", 9408, ()),), (), ())))
    digraph niwaki {
      label="net: nothing"; labelloc=t; rankdir=LR; ranksep=1.2;
      node [fontname="Helvetica", fontsize=10];
      m0 [shape=box, label="conv1\\nConv2d, 9,408 parameters", tooltip="nothing is pinned"];
    }
    <BLANKLINE>
    """
    out = [
        "digraph niwaki {",
        f"  label={_quoted(f'{drawing.title}: {drawing.summary}')}; labelloc=t; rankdir=LR; ranksep=1.2;",
        '  node [fontname="Helvetica", fontsize=10];',
    ]
    for number, block in enumerate(drawing.blocks):
        label = f"{block.name or '(the model)'}\n{block.kind}, {block.params:,} parameters"
        tooltip = "\n".join(line for pinned in block.pins for line in pinned.lines) or "nothing is pinned"
        frame = ""
        # The first reason is the one that holds back the most parameters.
        if block.pins and drawing.reasons[block.pins[0].reason].params:
            frame = f", penwidth=2, color={_quoted(drawing.colour(block.pins[0].reason))}"
        out.append(f"  m{number} [shape=box, label={_quoted(label)}, tooltip={_quoted(tooltip)}{frame}];")
    for number, line in enumerate(drawing.lines):
        label = f"{line.group.name}\n{line.group.units:,} {line.group.kind}"
        tooltip = f"{line.group.params:,} parameters lie in its units"
        tooltip += "" if line.group.inexact is None else f"\ninexact: {line.group.inexact}"
        out.append(
            f'  g{number} [shape=ellipse, style=filled, fillcolor="#dbeafe", label={_quoted(label)}, '
            f"tooltip={_quoted(tooltip)}];"
        )
        out += [f"  {_edge(number, stop)};" for stop in line.stops]
    for number, whole in enumerate(drawing.structures):
        label = f"{whole.name}\n{whole.macs:,} MACs, {whole.params:,} parameters"
        out.append(f"  s{number} [shape=folder, style=dashed, label={_quoted(label)}];")
        out += [f"  s{number} -> m{block} [style=dashed, arrowhead=none];" for block in whole.blocks]
    for number, reason in enumerate(drawing.reasons):
        if reason.params:
            label = f"pinned: {reason.text}\n{reason.params:,} parameters"
            tooltip = "\n".join(reason.lines) or "no line of source"
            colour = _quoted(drawing.colour(number))
            out.append(
                f"  r{number} [shape=note, color={colour}, fontcolor={colour}, label={_quoted(label)}, "
                f"tooltip={_quoted(tooltip)}];"
            )
    return "\n".join([*out, "}", ""])


def needs_graphviz() -> None:
    """Raise `NiwakiError` if the program `dot` cannot be found."""
    if shutil.which("dot") is None:
        raise NiwakiError(
            "Drawing an .svg needs the program `dot` of Graphviz, which is not on the PATH. Install Graphviz (apt "
            "install graphviz, brew install graphviz), or draw an .html, which needs no other program."
        )


@form(".svg", ready=needs_graphviz)
def svg_text(drawing: Drawing) -> str:
    """The drawing as SVG, made by `dot`.

    Raises:
        NiwakiError: `dot` fails.
    """
    done = subprocess.run(["dot", "-Tsvg"], input=dot_text(drawing), capture_output=True, text=True)
    if done.returncode:
        raise NiwakiError(f"dot could not draw this graph: {done.stderr.strip()}. Draw an .html instead.")
    return done.stdout


def _edge(group: int, stop: PathStop) -> str:
    """One edge per module and group, whatever the number of shared tensors."""
    if stop.computes:
        return f"m{stop.block} -> g{group}" + (" [dir=both]" if stop.reads else "")
    return f"g{group} -> m{stop.block}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
