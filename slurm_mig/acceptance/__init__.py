"""One command that proves a GPU: everything this project relies on, tried on one idle GPU.

`script.py` tries and writes down what came; the same script runs on a simulated GPU of that
model (`twin.py`), and `record.py` tells where the two differ. `run.py` watches over it all and
`restore.py` puts the GPU back as it was found, also after a run that was killed.
"""
