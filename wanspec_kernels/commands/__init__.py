"""Commands of `wanspec` that are more than a few lines."""
