"""What ptxas and the disassembler report."""

from __future__ import annotations

import pytest

from ptx import ToolError, compile_cu, find_tool, ptxas_report, sass_opcodes
from ptx.samples import HEAD, compiled, needs_nvcc


@needs_nvcc
def test_resources_and_machine_code():
    ptx = compiled("gemm.cu")
    report = ptxas_report(ptx, 80)["gemm_f16"]
    assert report.registers > 30
    assert report.shared == 3 * (64 * 40 + 32 * 72) * 2
    assert report.spill_loads == report.spill_stores == 0
    opcodes = sass_opcodes(ptx, 80)
    if opcodes is None:
        pytest.skip("neither nvdisasm nor cuobjdump is installed")
    found = {opcode.split(".")[0] for opcode in opcodes["gemm_f16"]}
    assert {"HMMA", "LDSM", "LDGSTS"} <= found
    assert "IMMA" in {opcode.split(".")[0] for opcode in opcodes["gemm_s8"]}


@pytest.mark.skipif(find_tool("ptxas") is None, reason="ptxas is not installed")
def test_a_tool_that_fails_says_why():
    with pytest.raises(ToolError, match="Unknown symbol"):
        ptxas_report(HEAD + ".visible .entry k() { bra NOWHERE; }")


def test_a_tool_that_is_not_there(monkeypatch):
    monkeypatch.setattr("ptx.toolchain.find_tool", lambda name: None)
    with pytest.raises(ToolError, match="nvcc not found"):
        compile_cu("kernel.cu")
