"""The paper's tables: retrieval (Table 1) and similarity of reconstructions (Table 2)."""
