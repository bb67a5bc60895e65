"""From histories to slates: arrays in, arrays out, one run for a whole batch."""
