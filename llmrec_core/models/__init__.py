"""The language models: catalogue, loading, tuning, heads, devices. Only ``catalogue`` is free of torch."""
