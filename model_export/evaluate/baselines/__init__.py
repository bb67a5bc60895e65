"""What the generator is compared with, trained in the same harness on the same events."""
