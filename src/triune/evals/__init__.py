"""What models say and how well they do."""
