"""A worked example of an LSTM with the reader's own sizes: `python -m lstmjax.explain --inputs 1 --units 3 --steps 4`.

What `units` means, every shape, where the number of parameters comes from, and every step in numbers. What
`lstmjax.lstm.dispatch` tells is something else: which implementation runs.
"""
