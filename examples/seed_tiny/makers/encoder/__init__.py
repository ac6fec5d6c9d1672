"""Contrastive pretraining of seed-tiny's image encoder; examples/seed_tiny/train_encoder.py is the script."""
