"""OneSlate's offline half: from an event log to a bundle. torch lives here."""
