"""The demo models: SmolLM2-135M-Instruct, and a small LLaVA-NeXT around it that this project trains itself.

fetch.py    get both into the model folder                     (`python -m quant_engine get demo`)
base.py     turn the fetched language model into a plain transformers folder
model.py    the demo LLaVA-NeXT: its architecture, and how it is composed from the base and our own parts

Its pictures are drawn in quant_engine/data/drawn/; quant_engine/demo_training/ makes our own parts.
"""
