"""The drafter daemon: grows token trees on an idle machine and ships them to a remote target.

Importing the package loads neither torch nor Triton.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("wanspec-kernels")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+uninstalled"
