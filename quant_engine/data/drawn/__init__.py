"""Pictures that the project draws, with questions and answers: calibration, fine-tuning and the demo's picture suite.

drawing.py  a canvas that remembers where each character and shape was drawn
words.py    the names, words and phrasings that pictures and questions are made from
scenes.py, charts.py, forms.py, diagrams.py    one family of pictures each
pictures.py a picture of any family from a split and a number
questions.py   how a question is asked: choices, yes or no, a short answer
suite.py    the picture suite: demo-docvqa, demo-chartqa, demo-ai2d, demo-mmbench, demo-mme
examples.py the example pictures of the page
"""
