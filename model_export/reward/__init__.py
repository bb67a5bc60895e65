"""What a whole slate is worth to a user: the session reward model."""
