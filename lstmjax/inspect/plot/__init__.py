"""Pictures of an LSTM: the network over time, the cell, its weights, what its gates do, sequences of sequences.

Each takes a matplotlib Axes to draw in, `ax`, or makes one, and returns it. matplotlib is the extra `lstmjax[plot]`.
"""

from lstmjax.inspect.plot.heat import connections as connections
from lstmjax.inspect.plot.heat import gates as gates
from lstmjax.inspect.plot.levels import hierarchy as hierarchy
from lstmjax.inspect.plot.step import cell as cell
from lstmjax.inspect.plot.unroll import unrolled as unrolled
