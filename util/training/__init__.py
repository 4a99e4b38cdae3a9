"""A training run: session, trainer, optimizer step, EMA, meters and k-NN evaluation. The loops themselves are in
engine_*.py."""
