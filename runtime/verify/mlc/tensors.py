"""The tensors of an MLC package, as verify compares them."""

from __future__ import annotations

import numpy as np
import torch

from convert.bundle.plan import PlannedTensor
from convert.mlc.opened import MlcPackage
from convert.mlc.params import names_in
from convert.mlc.stored_params import stored_tensor
from runtime.reference.lazy_weights import GroupCodes, Weight


class PackageTensors:
    """See `runtime.verify.files.weights.StoredTensors`."""

    def __init__(self, package: MlcPackage) -> None:
        """Args: package: an open one."""
        self.plan = package.plan
        self._params, self._names = package.params, names_in(package.plan)

    def hold(self, tensor: PlannedTensor) -> Weight:
        """See `StoredTensors`."""
        found = stored_tensor(self._params, self._names[tensor.name], tensor.format)
        if not isinstance(found, tuple):
            return torch.from_numpy(np.array(found))
        codes, scale = found
        if tensor.format == "q4":
            codes = codes.astype(np.int8) - np.int8(self.plan.recipe.scheme.zero_point)
        scales = torch.from_numpy(scale.astype(np.float32))
        return GroupCodes(torch.from_numpy(codes), scales, tensor.rule.shape[1])

    def release(self) -> None:
        """Does nothing: each parameter is mapped for as long as it is used."""
