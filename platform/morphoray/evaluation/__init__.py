"""How far generated images lie from real ones, and the report that shows it (no Ray)."""
