"""Commands of `python -m quant_engine` that have a file of their own."""
