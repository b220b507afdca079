"""What is done with a finished or running study: status, export, rank, compare, transfer."""
