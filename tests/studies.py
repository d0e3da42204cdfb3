"""Small studies that tests run."""

from __future__ import annotations

from pathlib import Path

from reben_cloud.training.study.grid import Study, load_study

SMALL = """
title = "Two sensors & two seeds"
about = "Is it <quick>? See `scores`."
seeds = [1, 2]

[recipe]
architecture = "test_resnet"
epochs = 2
batch_size = 8
log_steps = 1
checkpoint_steps = 2
drop_path_rate = 0.0

[axes.bands]
S1 = { bands = "S1" }
RGB = { bands = "B04,B03,B02" }
"""


def study_file(folder: Path, text: str = SMALL) -> Path:
    """A file of a study."""
    path = folder / "small.toml"
    path.write_text(text)
    return path


def small_study(folder: Path, *overrides: str, text: str = SMALL) -> Study:
    """That study, read."""
    return load_study(study_file(folder, text), overrides=overrides)
