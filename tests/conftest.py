"""Profiles of the property tests: `ci` is quick and repeatable, `long` draws 1,300 new cases for each."""

import os

from hypothesis import settings

settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, database=None)
settings.register_profile("long", max_examples=1300, deadline=None, database=None, print_blob=True)
settings.load_profile(os.environ.get("MATU_HYPOTHESIS", "ci"))
