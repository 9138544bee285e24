"""Experiments over lstmjax: `python -m experiments run configs/airline.toml`."""
