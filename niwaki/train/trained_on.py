"""What the weights of a run were trained on, so that no image of its training is counted among the test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from niwaki.errors import RunError
from niwaki.io import WEIGHTS_FILE
from niwaki.report import REPORT_FILE, read_report
from niwaki.train.data import Images


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The images of a training. ``split``: the seed that divided them for training and testing. ``test_checksum``: as
    in `Images`; None in reports of before."""

    data: str
    split: int
    image_size: str | None
    test_checksum: str | None

    def same_source(self, data: str) -> bool:
        """Whether ``data`` names the same images."""
        return data == self.data or Path(data).absolute() == Path(self.data).absolute()

    def check(self, images: Images, data: str, image_size: str | None) -> None:
        """Compare with ``images``, which were read from ``data`` and divided by `split`.

        Raises:
            RunError: they are others, so that test images may have been trained on.
        """
        if self.test_checksum is not None and image_size == self.image_size:
            same = self.test_checksum == images.test_checksum
        else:
            same = self.same_source(data)
        if not same:
            raise RunError(
                f"The weights were trained on the images of {self.data!r}, and those of {data!r} have another test "
                "part or are others: images that the network was trained on may be among them. Give the data of the "
                "training, or, if they are meant, the network with its weights as path/to/file.py:factory."
            )


def split_of(data: str, seed: int, weights: str | None) -> int:
    """The seed that divides the images of a training into those for training and testing: ``seed``, or, where the
    training goes on from a run on the same ``data``, that of this run."""
    before = trained_on(weights)
    return before.split if before is not None and before.same_source(data) else seed


def trained_on(weights: str | None) -> TrainedOn | None:
    """What the report beside ``weights`` says: a directory of a run, or the file of its weights. None without one.

    Raises:
        FileFormatError: there is a report, and it cannot be read.
    """
    if weights is None:
        return None
    path = Path(weights)
    directory = path.parent if path.name == WEIGHTS_FILE else path
    if not (directory / REPORT_FILE).is_file():
        return None
    report = read_report(directory)
    recipe, data = report.recipe, report.data
    return TrainedOn(
        recipe["data"], data.get("split", recipe["seed"]), recipe.get("image_size"), data.get("test_checksum")
    )
