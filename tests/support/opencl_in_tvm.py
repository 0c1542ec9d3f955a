"""OpenCL for a TVM that was built without it: its device, and the modules of its libraries.

TVM finds both by the names of global functions, which are made here. The device's memory is this
process's; kernels run through the system's OpenCL. Host code looks for a kernel in its library's
modules first, then among the global functions: there it finds ours. For a process of its own.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm_ffi import register_global_func

from tests.support.opencl_device import OpenClDevice
from tests.support.opencl_kernels import Kernel, read_kernels

_EMPTY = bytes(16)  # no object code, no names of functions


class OpenClInTvm:
    """One OpenCL library at a time, in this process."""

    def __init__(self, device: OpenClDevice) -> None:
        """Makes TVM know the device."""
        assert not tvm.runtime.enabled("opencl")
        self.launches: dict[str, int] = {}  # of each kernel of the library
        self._device = device
        memory = tvm.get_global_func("device_api.cpu")
        register_global_func("device_api.opencl", lambda: memory())
        register_global_func("ffi.Module.load_from_bytes.opencl", self._load)

    def _load(self, data: Any) -> Any:
        for kernel in read_kernels(bytes(data)):
            assert kernel.name not in self.launches, "a second library"
            self.launches[kernel.name] = 0
            register_global_func(kernel.name, self._function(kernel))
        return tvm.get_global_func("ffi.Module.load_from_bytes.static_library")(_EMPTY)

    def _function(self, kernel: Kernel) -> Any:
        count = len(kernel.types)

        def run(*arguments: Any) -> None:
            values = [getattr(one, "value", one) for one in arguments]
            self._device.run(kernel, values[:count], values[count:])
            self.launches[kernel.name] += 1

        return run
