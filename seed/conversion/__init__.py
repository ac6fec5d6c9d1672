"""Released checkpoints of others, converted into the formats of this package."""
