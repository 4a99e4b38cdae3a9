"""Everything around the training loops of engine_*.py, which the main scripts call: session (device and processes),
setup of weights, precision and optimizer, optimizer step with schedule and EMA, meters, trainer (when to checkpoint,
stop or abort) and k-NN evaluation. Models, data, checkpoint files and reports have packages of their own."""
