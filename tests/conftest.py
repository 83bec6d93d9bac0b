"""Settings of every test."""

from hypothesis import settings

# A deadline would make a busy machine fail tests that are right.
settings.register_profile("nestcoder", deadline=None)
settings.load_profile("nestcoder")
