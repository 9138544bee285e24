"""Seeing into an LSTM: what it holds, and what happens in it at every step."""

from lstmjax.inspect import plot as plot
from lstmjax.inspect.tables import summary as summary
from lstmjax.inspect.traces import Trace as Trace
from lstmjax.inspect.traces import trace as trace
