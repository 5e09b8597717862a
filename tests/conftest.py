"""For all tests: no test judges by how long something took; hypothesis would, by default."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
