"""Loss, optimizer and schedule, and the training loop."""
