"""The circuit that garbling is measured beside: right on all shares, and at DELPHI's price."""

from __future__ import annotations

import numpy as np
from garbling import masked_relu

from deepreduce.private.circuits import evaluate_plain, from_bits


def test_every_pair_of_shares() -> None:
    server, client = (a.ravel() for a in np.meshgrid(np.arange(16), np.arange(16)))
    x = (server + client + 8) % 16 - 8
    for out_bits in (2, 6):
        circuit = masked_relu(4, out_bits)
        for mask in range(2**out_bits):
            values = {"server_share": server, "client_share": client, "client_mask": np.full_like(x, mask)}
            out = from_bits(np.asarray(evaluate_plain(circuit, values)["out"], np.uint8))
            assert np.array_equal(out, (np.maximum(x, 0) - mask) % 2**out_bits)


def test_its_price() -> None:
    circuit = masked_relu(17, 27)
    assert (circuit.and_gates, circuit.known_and_gates, circuit.hashes, circuit.table_bytes) == (58, 12, 104, 1664)
    assert circuit.wires_of("evaluator") == 44
