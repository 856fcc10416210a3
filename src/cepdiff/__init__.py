"""Exact energy-guided diffusion sampling, and offline reinforcement learning with it."""

from importlib.metadata import version

__version__ = version("cepdiff")
