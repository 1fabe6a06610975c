"""How low-bit weights are stored: bit packing, one module per storage form, the ledger of stored bits."""
