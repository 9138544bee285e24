"""Time one layer of LSTM here and in other libraries."""

import os

# The cores of this process, counted before any other import: under OMP_PROC_BIND, a library with OpenMP binds the main
# thread to one core as it is imported, and whoever counts after that finds one.
CORES = len(os.sched_getaffinity(0))
