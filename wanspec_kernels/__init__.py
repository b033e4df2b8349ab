"""Kernels and services for speculative decoding whose drafter lives across the internet.

Importing the package loads neither torch nor Triton; import what you need from its modules, such as
`wanspec_kernels.verify`.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("wanspec-kernels")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+uninstalled"
