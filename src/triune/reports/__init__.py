"""Records of merges, measurements and trainings as a page to look at: reads what others wrote, never a weight."""
