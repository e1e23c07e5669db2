"""vLLM's scheduler for the parity tests, or a skip with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parity.oracle import VllmModules


@pytest.fixture(scope="session")
def vllm_modules(vllm: Any, tmp_path_factory: pytest.TempPathFactory) -> VllmModules:
    """vLLM's classes; a test that asks for them needs vLLM."""
    return VllmModules(tmp_path_factory.mktemp("parity-model"))
