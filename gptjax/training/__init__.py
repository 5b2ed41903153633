"""One update, and the run made of many: mesh, optimizer, loss, step, checkpoints, loop."""
