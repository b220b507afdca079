"""What a run keeps: its folder, manifest, trials, items, evaluations, leaderboard and release."""
