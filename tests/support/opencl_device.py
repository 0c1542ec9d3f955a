"""OpenCL on this machine's processor (PoCL), through the system's loader."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Sequence
from functools import cache
from typing import Any

from tests.support.opencl_half import half_precision
from tests.support.opencl_kernels import Kernel

_BUILD_LOG, _EXTENSIONS, _PROCESSOR = 0x1183, 0x1030, 2  # of CL/cl.h
_QUIET = b"-w"  # no warnings
_PLATFORMS = 16  # that are looked at
_FUNCTIONS = (  # those that return an object; all others return a status
    "clCreateContext clCreateCommandQueueWithProperties clCreateProgramWithSource clCreateKernel"
).split()


class OpenClError(Exception):
    """A call of OpenCL failed."""


class OpenClDevice:
    """Runs kernels on this process's own memory; only a processor can."""

    def __init__(self) -> None:
        """Opens the device.

        Raises:
            OpenClError: there is no loader, or no device.
        """
        name = ctypes.util.find_library("OpenCL")
        if name is None:
            raise OpenClError("no OpenCL loader (ocl-icd-libopencl1) is installed")
        self._library = ctypes.CDLL(name)
        for function in _FUNCTIONS:
            getattr(self._library, function).restype = ctypes.c_void_p
        self._device = self._find_processor()
        device = ctypes.byref(self._device)
        self._context = self._create("clCreateContext", None, 1, device, None, None)
        self._queue = self._create(
            "clCreateCommandQueueWithProperties", self._context, self._device, None
        )
        text, size = ctypes.create_string_buffer(2**16), ctypes.c_size_t(2**16)
        self._call("clGetDeviceInfo", self._device, _EXTENSIONS, size, text, None)
        self._before = "" if b"cl_khr_fp16" in text.value.split() else half_precision()
        self._build = cache(self._build_kernel)

    def run(self, kernel: Kernel, values: Sequence[Any], extents: Sequence[int]) -> None:
        """Runs a kernel to its end.

        Args:
            kernel: compiled when it is first run.
            values: its arguments: addresses and numbers.
            extents: of its threads.
        """
        built = self._build(kernel)
        for i, (kind, value) in enumerate(zip(kernel.types, values, strict=True)):
            if kind is ctypes.c_void_p:
                self._call("clSetKernelArgSVMPointer", built, i, ctypes.c_void_p(value))
            else:
                held, size = kind(value), ctypes.c_size_t(ctypes.sizeof(kind))
                self._call("clSetKernelArg", built, i, size, ctypes.byref(held))
        whole, group = ((ctypes.c_size_t * 3)(*one) for one in kernel.sizes(extents))
        place = (self._queue, built, 3, None, whole, group, 0, None, None)
        self._call("clEnqueueNDRangeKernel", *place)
        self._call("clFinish", self._queue)

    def _find_processor(self) -> ctypes.c_void_p:
        platforms, count = (ctypes.c_void_p * _PLATFORMS)(), ctypes.c_uint32()
        device, kind = ctypes.c_void_p(), ctypes.c_uint64(_PROCESSOR)
        self._library.clGetPlatformIDs(_PLATFORMS, platforms, ctypes.byref(count))
        for platform in platforms[: count.value]:
            one = (ctypes.c_void_p(platform), kind, 1, ctypes.byref(device), None)
            if self._library.clGetDeviceIDs(*one) == 0:
                return device
        raise OpenClError("no OpenCL for this processor (pocl-opencl-icd) is installed")

    def _build_kernel(self, kernel: Kernel) -> ctypes.c_void_p:
        before = self._before if "half" in kernel.source else ""
        source = ctypes.c_char_p((before + kernel.source).encode())
        program = self._create(
            "clCreateProgramWithSource", self._context, 1, ctypes.byref(source), None
        )
        try:
            one = ctypes.byref(self._device)
            self._call("clBuildProgram", program, 1, one, _QUIET, None, None)
        except OpenClError as error:
            log, size = ctypes.create_string_buffer(2**16), ctypes.c_size_t(2**16)
            self._library.clGetProgramBuildInfo(program, self._device, _BUILD_LOG, size, log, None)
            text = log.value.decode(errors="replace")
            raise OpenClError(f"{kernel.name}: {error}: {text}") from error
        return self._create("clCreateKernel", program, kernel.name.encode())

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise OpenClError(f"{name} failed with {status}")

    def _create(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        status = ctypes.c_int32()
        made = getattr(self._library, name)(*arguments, ctypes.byref(status))
        if status.value or not made:
            raise OpenClError(f"{name} failed with {status.value}")
        return ctypes.c_void_p(made)
