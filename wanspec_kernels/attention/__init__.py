"""Tree attention: every node sees the whole context, its ancestors and itself."""

from wanspec_kernels.attention.api import tree_attention

__all__ = ["tree_attention"]
