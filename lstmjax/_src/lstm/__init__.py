"""The LSTM: equations, variants and implementations."""
