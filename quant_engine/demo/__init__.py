"""The demo models: SmolLM2-135M-Instruct, and a small LLaVA-NeXT around it that this project trains itself.

fetch.py    get both into the model folder                     (`python -m quant_engine get demo`)
base.py     turn the fetched language model into a plain transformers folder
model.py    the demo LLaVA-NeXT: its architecture, and how it is composed from the base and our own parts
drawing.py  a canvas that remembers where each character and shape was drawn
words.py    the names, words and phrasings that pictures and questions are made from
scenes.py, charts.py, forms.py, diagrams.py    one family of pictures each
pictures.py a picture of any family from a split and a number
suite.py    the picture suite: demo-docvqa, demo-chartqa, demo-ai2d, demo-mmbench, demo-mme
train/      how our own parts were made                         (`python -m quant_engine.demo.train`)
"""
