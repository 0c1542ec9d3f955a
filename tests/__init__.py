"""Tests, in the folders' order; `tiny` makes the model that most of them use."""

import os

# Tensors are small here: waking a second thread costs more than it saves, most of all on a
# machine that has other work, such as a second worker of pytest. Child processes inherit it.
for variable in ("OMP_NUM_THREADS", "TVM_NUM_THREADS"):  # read when torch and TVM are loaded
    os.environ.setdefault(variable, "1")
