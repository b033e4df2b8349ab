"""Keys and values in pages: who owns which page, and moving entries within them."""

from wanspec_kernels.kv_cache.cache import CacheFullError, PagedKVCache
from wanspec_kernels.kv_cache.operators import compact, write

__all__ = ["CacheFullError", "PagedKVCache", "compact", "write"]
