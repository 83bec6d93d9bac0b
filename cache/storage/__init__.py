"""How a cache's bytes come to memory: mapped, unpacked or fetched."""
