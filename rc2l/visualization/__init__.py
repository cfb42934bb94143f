"""Pictures of images, label maps and predictions."""

from rc2l.visualization.panels import colorize, save_panel

__all__ = ["colorize", "save_panel"]
