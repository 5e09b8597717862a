"""Facts -> HTML. Pure. Every text from a plant is escaped; no script, no font, no picture comes from anywhere else."""

from gateway.console.pages.html import clock

__all__ = ["clock"]
