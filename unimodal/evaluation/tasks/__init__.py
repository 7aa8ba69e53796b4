"""Tasks, one file each: every one has `evaluate(model, source, ...) -> TaskResult`."""
