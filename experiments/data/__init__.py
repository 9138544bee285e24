"""The data sets, and the order in which training reads them."""
