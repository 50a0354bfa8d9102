"""Steps on a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import attrs
from rich.progress import Progress, TaskID
from torch.fx import GraphModule

from ....passes import Pass, Pipeline
from ....passes.instruments import Change

__all__ = ["PassBar", "Watch"]


@attrs.frozen
class PassBar:
    """An instrument that moves a bar on with every pass."""

    progress: Progress
    task: TaskID
    text: str

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Say which pass runs."""
        self.progress.update(self.task, description=f"{self.text}: {pass_.name}")

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """One more is done."""
        self.progress.advance(self.task)


@attrs.frozen
class Watch:
    """Shows one step after the other."""

    progress: Progress

    @contextmanager
    def step(self, text: str, total: int | None = None) -> Generator[Callable[[], None]]:
        """One step of ``total`` parts (None: not known); call what is given back after each."""
        task = self.progress.add_task(text, total=total)
        try:
            yield lambda: self.progress.advance(task)
        finally:
            self.progress.remove_task(task)

    @contextmanager
    def passes(self, text: str, pipeline: Pipeline) -> Generator[PassBar]:
        """A step of passes."""
        task = self.progress.add_task(text, total=len(pipeline))
        try:
            yield PassBar(self.progress, task, text)
        finally:
            self.progress.remove_task(task)
