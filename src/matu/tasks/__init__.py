"""Tasks: where their images come from, and which client holds what."""

from matu.tasks.cache import default_cache_dir
from matu.tasks.held_out import held_out
from matu.tasks.loading import load_tasks
from matu.tasks.suites import SUITES, resolve
from matu.tasks.task import Split, Task, class_list

__all__ = ["SUITES", "Split", "Task", "class_list", "default_cache_dir", "held_out", "load_tasks", "resolve"]
