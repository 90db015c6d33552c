"""matu relate."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from matu.cli.common import (
    DONE,
    INTERRUPTED,
    Folders,
    named_after,
    parse,
    prepare_libraries,
    roots,
    value_of,
)
from matu.config import RunConfig, read_config


@dataclass(frozen=True)
class RelateArguments:
    """Measure which tasks are alike, on adapters trained alone.

    The same command goes on after a stop.

    Example:
        matu relate --config configs/demo.toml --steps 100 --to alike
    """

    settings: RunConfig
    folders: Folders = dataclasses.field(default_factory=Folders)
    config: Path | None = None
    """TOML file with settings; options on the command line override it."""
    to: Path | None = None
    """Folder for matrices, correlations and figures; relatedness/<name of the configuration, or tasks> by default."""
    steps: int = 300
    """Optimiser steps a task."""
    images: int = 2000
    """Most training images of a task that E-Tran and WTE look at."""
    clusters: int = 0
    """How many clusters the tree of sign similarity is cut into; 0: three, or two of two tasks."""
    e_tran_as_released: bool = False
    """E-Tran's class score as its authors' code computes it: the nearest class mean."""
    json: bool = False
    """Print relatedness.json alone on stdout."""


def relate(arguments: list[str]) -> int:
    """matu relate."""
    file = value_of("--config", arguments)
    base = read_config(Path(file)) if file else RunConfig()
    parsed: RelateArguments = parse(RelateArguments, arguments, RelateArguments(base), "relate")
    prepare_libraries()
    from matu import relate as relatedness
    from matu.report import Display
    from matu.report.relatedness import print_relatedness

    name = Path(file).stem if file else named_after(parsed.settings)
    out = parsed.to or Path("relatedness") / name
    study = relatedness.Study(parsed.steps, parsed.images, parsed.clusters, parsed.e_tran_as_released)
    display = Display(quiet=parsed.json)
    try:
        found = relatedness.relate(parsed.settings, study, out, roots(parsed.folders), display.say)
    except KeyboardInterrupt:
        print("\nmatu: stopped; trained adapters stay in the cache; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    if parsed.json:
        print(json.dumps(found, indent=1))
    else:
        print_relatedness(found, out)
    return DONE
