"""Which drafters to use, with which trees, and what to expect; or why nobody can say."""
