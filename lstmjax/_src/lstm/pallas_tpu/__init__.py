"""The loop over time as kernels, one file for each platform."""
