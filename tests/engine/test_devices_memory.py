import pytest
import torch

from lib_hires.devices import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("no room"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("XPU out of memory. Tried to allocate 1.71 GiB (GPU 0; 15.56 GiB total)"),
        RuntimeError("Current platform can NOT allocate memory block with size larger than 4GB!"),
        RuntimeError("MPS backend out of memory (MPS allocated: 7.96 GB)"),
        RuntimeError("Invalid buffer size: 16.00 GB"),
        RuntimeError(
            "Could not allocate tensor with 4915840 bytes. There is not enough GPU video memory "
            "available!"
        ),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_every_device_s_out_of_memory_message_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes do not match"), ValueError("out of memory"), KeyboardInterrupt()],
)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)
