"""Keys and values in pages: who owns which page, and moving entries within them."""

from wanspec_kernels.kv_cache.cache import PagedKVCache
from wanspec_kernels.kv_cache.operators import compact, write
from wanspec_kernels.kv_cache.pages import CacheFullError

__all__ = ["CacheFullError", "PagedKVCache", "compact", "write"]
