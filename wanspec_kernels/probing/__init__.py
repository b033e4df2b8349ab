"""What a plan rests on, measured: links at the real payload size, and endpoints' streams."""
