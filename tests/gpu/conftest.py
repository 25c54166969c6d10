"""The device of these tests: a GPU, or what ATLAS_RAY_GPU_TEST_DEVICE names.

On a machine with PyTorch for CUDA, from the repository's folder:

    pip install "transformers>=5.16.1,<5.20" "peft>=0.21,<0.22" safetensors "pydantic>=2.13,<3" gymnasium==1.2.2 \
        pytest pytest-xdist hypothesis
    python -m pytest -m gpu tests/gpu

Neither Ray nor vLLM nor the package itself has to be installed; the tests that need Ray or vLLM are then skipped by
name. ATLAS_RAY_GPU_TEST_DEVICE=cpu runs all of it on a CPU, which shows that the tests themselves are right.
"""

import os

import pytest
import torch

# before the first product on a GPU, or cuBLAS may sum in another order each time
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def device():
    asked = os.environ.get("ATLAS_RAY_GPU_TEST_DEVICE", "cuda")
    if torch.device(asked).type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(asked)


@pytest.fixture(autouse=True)
def _same_every_time(device):
    """Kernels that give the same bits every time where there are such, and float32 that is not TensorFloat32."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("highest")
    yield
    torch.use_deterministic_algorithms(False)
