"""The pipeline that quantizes a model, block by block."""
