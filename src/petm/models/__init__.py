"""Base models: loading networks and weights, Hugging Face folders, prediction."""

from petm.models.paper import PaperCNN as PaperCNN
from petm.models.paper import paper_cnn as paper_cnn
