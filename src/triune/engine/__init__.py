"""From a wish to bytes: plan on headers, then let an executor run the jobs."""
