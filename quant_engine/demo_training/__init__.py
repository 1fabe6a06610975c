"""How the demo model's own parts are trained, stage by stage, on a CPU or a GPU.

labels.py     what each patch of a picture holds: the dense labels
symbols.py    the code in which the language model is told what a patch holds
budget.py     a stage's clock, log and checkpoint: killed at any moment, it goes on where it was
tower.py      stage 1: the vision tower learns to name what each patch holds
language.py   stage 2: the language adapter learns to answer from coded grids; nothing is drawn
projector.py  stage 3: the projector learns to turn the tower's features into that code
joint.py      stage 4: all of it together, on pictures
score.py      how well a model answers held-out pictures, and blank ones
export.py     write the parts that ship, and their model card
"""
