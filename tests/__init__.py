"""Tests, in the folders' order; `tiny` makes the model that most of them use."""

import torch

# Tensors are small here: waking a second thread costs more than it saves, most of all on a
# machine that has other work.
torch.set_num_threads(1)
