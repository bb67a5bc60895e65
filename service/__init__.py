"""OneSlate's online half: everything here runs without torch."""
