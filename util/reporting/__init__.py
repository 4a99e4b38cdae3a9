"""What a run leaves for people: the output folder, log.txt, summary.json, TensorBoard and the report page."""
